"""Speed and quality against peers: one command a benchmark, tables in results/."""
