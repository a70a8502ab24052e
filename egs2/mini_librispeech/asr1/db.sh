# Where local/data.sh puts the corpus that it makes.
LIBRISPEECH=downloads
