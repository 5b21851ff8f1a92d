"""The front door: parse, call the library once, print. Data goes to stdout, talk and progress to stderr.

Each command lives in a module of its own and loads when it is called, so that ``iclkit --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from types import TracebackType

import click

from iclkit import __version__
from iclkit.cli._examples import show_examples
from iclkit.cli._terminal import echo
from iclkit.errors import IclkitError, UnknownName

# command -> (module, one line of help); a module's ``command`` is the click object
COMMANDS = {
    "demo": ("_demo", "See the whole story on the bundled set with the default models."),
    "task": ("_task", "Describe your own data once, as a task with a name: new, show, check."),
    "pool": ("_pool", "Keep demonstrations: add, ls, show, update, label, rm, dedupe, stats, embed, check, export."),
    "keys": ("_keys", "Key texts that an LM wrote about a pool's inputs (skill-knn): export, annotate."),
    "augment": ("_augment", "Let a model write demonstrations into a pool."),
    "select": ("_select", "Choose demonstrations for queries; keep a fitted selector."),
    "prompt": ("_prompt", "Print the prompt of a task for a query: text, messages, an API request or curl."),
    "train": ("_train", "Train a retriever from an LM's feedback: epr, udr, llm-r, se2, ceil."),
    "eval": ("_eval", "Run selectors over tasks with an LM and record every query."),
    "tune": ("_tune", "Find one ordered list of demonstrations for a whole task."),
    "diagnose": ("_diagnose", "Describe what selectors pick, in seconds and without an LM."),
    "explain": ("_explain", "Say which demonstrations a run showed, why, and the effect of each."),
    "advise": ("_advise", "Run a small pilot and say what to do: zero-shot, more shots, similar ones, or train."),
    "leaderboard": ("_leaderboard", "Rank recorded runs, with intervals and tests against a baseline."),
    "runs": ("_tracking", "Hand recorded runs to an experiment tracker: MLflow, W&B, Trackio."),
    "lm": ("_lm", "Find out what a language model or a server can do, and how fast it answers."),
    "view": ("_view", "Look at a pool in the browser: compare selectors, edit examples, open boards."),
    "serve": ("_serve", "Answer over HTTP with a kept selector, or add demonstrations to a chat API (--proxy)."),
    "hub": ("_hub", "Publish and fetch retrievers and kept selectors on the Hugging Face hub."),
    "models": ("_models", "List and fetch models."),
    "datasets": ("_datasets", "List, show and fetch data sets."),
    "selectors": ("_selectors", "List the selectors with what each needs and costs."),
}


_NO_SPACE = os.strerror(errno.ENOSPC)
"""What a full disk is called, also inside the errors of libraries."""


_NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "could not create a primitive",  # oneDNN
    "Cannot allocate memory",
    "failed to map segment",  # the loader of libraries, as an ImportError
)
"""What the libraries that compute call memory that ends."""
_FREE_SPACE = "free space and give the same command again: what was finished is kept"


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            raise UnknownName("command", cmd_name, COMMANDS)
        command = import_module(f"iclkit.cli.{COMMANDS[cmd_name][0]}").command
        assert isinstance(command, click.Command)
        return show_examples(cmd_name, command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="iclkit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Choose in-context demonstrations, assemble prompts, and measure whether the choice helps."""
    ctx.obj = {**(ctx.obj or {}), "debug": debug}


class _Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP: ends what runs the way Ctrl-C does, so that locks are released and work folders closed."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def _end(number: int, _: object) -> None:
    raise _Ended(number)


def _end_cleanly_on_signals() -> None:
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        # what is ignored stays ignored (nohup), and a handler of the embedding program stays in force
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # called from a thread: signals are the main thread's business
                signal.signal(number, _end)


def main(args: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 the data or the run failed, 2 change the command, 130 interrupted.

    SIGTERM and SIGHUP end a command like Ctrl-C does, with exit codes 143 and 129.
    """
    arguments = sys.argv[1:] if args is None else args
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show_traceback
    _end_cleanly_on_signals()
    try:
        status = cli.main(arguments, prog_name="iclkit", standalone_mode=False, obj={"typed": list(arguments)})
        sys.exit(status if isinstance(status, int) else 0)
    except IclkitError as error:
        if "--debug" in arguments:
            raise
        _stop(str(error), error.exit_code)
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        _stop(error.format_message() + hint, 2)
    except click.ClickException as error:
        _stop(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:
        cause = stop if isinstance(stop, _Ended) else stop.__cause__  # click wraps what interrupts a command
        number = cause.number if isinstance(cause, _Ended) else signal.SIGINT
        _stop("interrupted; what was finished is kept, and the same command resumes", 128 + number)
    except BrokenPipeError:
        # the reader of our output has gone (e.g. `| head`): not an error; keep Python from flushing into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        remedy = _remedy(error)
        if "--debug" in arguments or remedy is None:
            raise
        _stop(f"{error or type(error).__name__}; {remedy}", 1)


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback, of ``--debug`` or of a bug, without the secrets that stand in errors of libraries."""
    echo("".join(traceback.format_exception(kind, error, trace)), err=True, nl=False)


def _remedy(error: Exception) -> str | None:
    """What to do about an error of the machine, which any line of any library may meet; None for a bug of ours."""
    seen: BaseException | None = error
    while seen is not None:
        if _NO_SPACE in str(seen) or (isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT)):
            return _FREE_SPACE
        if isinstance(seen, MemoryError) or any(words in str(seen) for words in _NO_MEMORY):
            return "not enough memory; what was finished is kept. Give less at once (a smaller --limit or pool)"
        seen = seen.__cause__ or seen.__context__
    if full := _full_disk():
        # libraries that write weights raise errors of their own, in which the cause is lost
        return f"the disk of {full} is full; {_FREE_SPACE}"
    if isinstance(error, OSError) and error.filename is not None:
        return "make that path readable and writable, or name another; what was finished is kept"
    return None


def _full_disk() -> str:
    """The first of the places that commands write to whose file system has no room left."""
    from iclkit.models import home

    for place in (Path.cwd(), home(), Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            if shutil.disk_usage(place).free < 64 * 1024:
                return str(place)
    return ""


def _stop(text: str, code: int) -> None:
    echo(f"error: {' '.join(text.split())}", err=True)
    sys.exit(code)
