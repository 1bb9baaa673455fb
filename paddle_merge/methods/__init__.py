"""The methods. One paper, one file: its formula, its parameters, and what it measures beforehand."""
