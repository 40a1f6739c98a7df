"""`python -m fuser`."""

from fuser.cli import main

if __name__ == "__main__":
    main(prog_name="mlx-fuser")
