"""The speech codec of GLM-4-Voice (Zeng et al. 2024): VITA-Audio speaks with it, Kimi-Audio hears with its tokenizer.

tokenizer.py   16 kHz → 12.5 units a second: half a Whisper encoder, causal by blocks, and a codebook
encoder.py     units → mean of the spectrum: a conformer and a stretch to the spectrum's frame rate
estimator.py   the U-Net that flow matching integrates
flow.py        units → log-mel spectrum: encoder, estimator, ten Euler steps
vocoder.py     log-mel spectrum → 22.05 kHz: pitch, a harmonic source, a HiFi-GAN that ends in an inverse STFT
decoder.py     flow and vocoder from a published folder
codec.py       tokenizer and decoder behind the codec's protocol
"""
