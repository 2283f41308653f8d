"""`python -m mpconv`."""

from mpconv.cli import run

if __name__ == "__main__":
    run()
