"""``python -m agentsched``."""

from agentsched.cli.main import main

if __name__ == "__main__":
    main()
