from __future__ import annotations

import gc

# How many objects are made before Python looks for cycles among them. A plan of tens of thousands of tensors makes millions,
# which stay and have no cycles: with Python's default of 700, looking took a third of the time, with 200,000 a twelfth.
YOUNG = 5_000_000


def main() -> None:
    """Run the command line in a process of its own. Exits as commands.main.main does."""
    gc.set_threshold(YOUNG, 50, 50)
    from .commands.main import main as run

    try:
        run()
    finally:
        gc.freeze()  # else Python looks through all modules once more when it ends, which takes 0.2 s


if __name__ == "__main__":
    main()
