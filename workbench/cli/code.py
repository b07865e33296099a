"""The verb that shows a config as a program: runnable Python that trains to the same losses.

Invariant: nothing here starts a run or imports the trainer.
"""

from workbench.cli.config_arguments import read_config_arguments
from workbench.cli.text_result import add_text_options, give_text
from workbench.config.python_code import python_code


def run(arguments: list[str]) -> int:
    """Show a config as Python; one that could not be started is refused in the same words."""
    read = read_config_arguments(
        arguments,
        verb="code",
        summary="Show a config as a Python program that trains to the same losses.",
        add_options=add_text_options,
        examples=(
            ("code -t demo -o run.py", "then: python run.py --max-steps 10"),
            ("code -t demo -e optimizer.learning_rate=5e-4", "look at it in the editor"),
        ),
    )
    text = python_code(read.resolved).rstrip("\n")
    give_text(text, read.options, name=f"{read.resolved.name}.py")
    return 0
