"""Runs the command line with `python -m llm_wrapper`."""

from llm_wrapper.cli.main import main

if __name__ == "__main__":
    main()
