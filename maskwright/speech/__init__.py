"""Speech: WAV, FLAC, OGG and MP3, spectral features, utterances of various lengths."""
