"""Using trained models: prediction, the figures and pictures of evaluation, comparisons."""
