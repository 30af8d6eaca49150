"""From bytes to sentences, words and token ids."""
