# Where the corpora are on this machine.

# Directory with LibriSpeech/ in it, which has SPEAKERS.TXT, train-clean-100, dev-clean, dev-other,
# test-clean and test-other. Empty: downloads, once local/data.sh --download true has filled it.
LIBRISPEECH=

# Free Spoken Digit Dataset: its directory or its .tar.gz archive.
FSDD=

# Clones of github.com/rhasspy/dataset-voice-kathleen and github.com/jimbozhang/speechocean762.
KATHLEEN=
SPEECHOCEAN762=
