"""Sets of others in, ours out: layouts, exports, whitening, DD-Ranking's scores."""
