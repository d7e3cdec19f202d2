import pytest
import soundfile
from sounds import tone


@pytest.fixture
def sound(tmp_path):
    """Writes a sound file and gives its path."""

    def write(name="a.wav", wave=None, rate=16000, **options):
        path = tmp_path / name
        soundfile.write(path, tone(rate=rate) if wave is None else wave, rate, **options)
        return path

    return write
