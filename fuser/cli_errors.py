"""Errors on the command line: one line each on stderr, exit status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from fuser.errors import FuserError

# what newer versions of click raise where a command is called without anything
HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())

# as a shell has it for a program that wrote where nobody reads
LEFT = 141


class Problem(click.ClickException):
    """Something that the user can put right; the message says how."""

    exit_code = 2


class Commands(click.Group):
    """A group whose commands end in one line where Python would print a traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        """Run a command and leave with its exit status."""
        options["standalone_mode"] = False
        try:
            status = super().main(args, *rest, **options)
            sys.stdout.flush()
        except click.UsageError as error:
            if isinstance(error, HELP):
                click.echo(error.format_message(), err=True)
                sys.exit(error.exit_code)
            command = error.ctx.command_path if error.ctx else "mlx-fuser"
            _fail(f"{error.format_message().rstrip('.')} (see {command} --help)", error.exit_code)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except click.Abort:
            _fail("interrupted", 130)
        except BrokenPipeError:
            _left()
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; whatever it raises becomes a line, unless `--traceback` was given."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # here, as click would make status 1 of it
            _left()
        except Exception as error:
            if ctx.params.get("traceback"):
                raise
            if isinstance(error, FuserError):
                raise Problem(str(error)) from error
            raise Problem(f"{described(error)} (mlx-fuser --traceback {ctx.invoked_subcommand} shows where)") from error


def described(error: BaseException) -> str:
    """An exception in one line: its type and what it says."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _left() -> NoReturn:
    """Whoever read our output has gone (`| head`): Python must not complain about it at its end either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(LEFT)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(status)
