"""Rewards by local text models: embedding similarity and sequence classifiers."""

import numpy as np
import pytest
import tiny_models
import torch
from answers import answer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from elocute.errors import InputError
from elocute.rewards.classifier import ClassifierReward
from elocute.rewards.embedding import EmbeddingReward
from elocute.rewards.outcome import Invalid

TEXTS = ["it is cold", "a", "red blue green"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_models.bert(tmp_path_factory.mktemp("m") / "bert")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return tiny_models.classifier(tmp_path_factory.mktemp("m") / "classifier")


def test_embeddings_equal_their_naive_twin(bert):
    """Mean over real tokens of one text at a time, without padding, in float64."""
    model, tokenizer = AutoModel.from_pretrained(bert).double().eval(), AutoTokenizer.from_pretrained(bert)
    with torch.no_grad():
        naive = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0).numpy() for t in TEXTS]
    naive = [v / np.linalg.norm(v) for v in naive]
    reward = EmbeddingReward("e", bert, "reference", batch_size=2, device="cpu")
    np.testing.assert_allclose(reward.encoder.embed(TEXTS), naive, atol=1e-5)
    outcomes = reward([answer(t, reference=TEXTS[0]) for t in TEXTS])
    assert [o.value for o in outcomes] == pytest.approx([v @ naive[0] for v in naive], abs=1e-5)


def test_the_nearest_of_several_references_counts(bert):
    reward = EmbeddingReward("e", bert, "reference", device="cpu")
    far, same = reward([answer("a", reference="red blue green"), answer("a", reference=["red blue green", "a"])])
    assert same.value == pytest.approx(1) and far.value < same.value


def test_a_check_names_every_row_without_a_reference(bert):
    rows = [answer("a", **columns).example for columns in ({"reference": "a"}, {}, {"reference": ["a", ""]})]
    reward = EmbeddingReward("e", bert, "reference", device="cpu")
    with pytest.raises(InputError) as caught:
        reward.check(rows)
    lines = str(caught.value).split("\n")
    assert len(lines) == 2 and all(line.startswith("rows.jsonl:7: reference: expected an accepted") for line in lines)
    reward.check(rows[:1])


def test_classifier_gives_the_labels_probability(labelled):
    model = AutoModelForSequenceClassification.from_pretrained(labelled).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(labelled)
    with torch.no_grad():
        naive = [model(**tokenizer(t, return_tensors="pt")).logits[0].softmax(-1)[1].item() for t in TEXTS]
    outcomes = ClassifierReward("c", labelled, "glad", batch_size=2, device="cpu")([answer(t) for t in TEXTS])
    assert [o.value for o in outcomes] == pytest.approx(naive, abs=1e-5)
    assert max(naive) - min(naive) > 0.01


def test_multi_label_classifiers_use_a_sigmoid(tmp_path):
    folder = tiny_models.classifier(tmp_path / "m", problem_type="multi_label_classification")
    total = sum(ClassifierReward("c", folder, n, device="cpu")([answer("a")])[0].value for n in ("calm", "glad", "sad"))
    assert abs(total - 1) > 0.01


def test_bad_answers_are_invalid_and_the_rest_keep_their_order(labelled):
    reward = ClassifierReward("c", labelled, "glad", device="cpu")
    first, broken, empty, last = reward([answer("a"), answer("a", broken="no end"), answer(""), answer("b")])
    assert (broken, empty) == (Invalid("no end"), Invalid("empty text"))
    assert [first, last] == reward([answer("a"), answer("b")])


def test_what_is_missing_is_named(bert, labelled, tmp_path):
    with pytest.raises(InputError, match="label 'angry' is not one of the model's labels: calm, glad, sad"):
        ClassifierReward("c", labelled, "angry")
    with pytest.raises(InputError, match="not a model folder"):
        EmbeddingReward("e", tmp_path, "reference")
    with pytest.raises(InputError, match="rows.jsonl:7: reference: expected"):
        EmbeddingReward("e", bert, "reference", device="cpu")([answer("a")])


def test_a_model_without_its_head_is_refused(bert):
    """transformers would draw the classifier's weights at random, and these would judge."""
    with pytest.raises(InputError, match="lacks weights of AutoModelForSequenceClassification: classifier.bias"):
        ClassifierReward("c", bert, "LABEL_0", device="cpu")


def test_pickled_weights_are_refused(bert, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in bert.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save(AutoModel.from_pretrained(bert).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be opened"):
        EmbeddingReward("e", folder, "reference")
