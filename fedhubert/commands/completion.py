"""``fedhubert completion``: what the shell may complete, written down once, so that Tab waits for
no Python."""

import argparse
from collections.abc import Mapping

_BASH = """\
# Completion of fedhubert's verbs, flags, keys and choices, made by `fedhubert completion bash`.
_fedhubert() {{
  local line=${{COMP_LINE:0:COMP_POINT}} words="{verbs}"
  local last=${{line##*[[:space:]]}}
  if ((COMP_CWORD > 1)); then
    case ${{COMP_WORDS[1]}} in
{cases}
      *) words="" ;;
    esac
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$last")
  [[ ${{COMPREPLY[*]}} == *= ]] && compopt -o nospace
  # to readline the word begins after the =
  [[ $last == *=* && $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${{COMPREPLY[@]#"${{last%=*}}="}}")
  return 0
}}
complete -o default -F _fedhubert fedhubert
"""
_TRAINING = {
    "train": ["--cfg", "--explain", "--multirun", "--help"],
    "central": ["local_only=", "reset_each_round=", "--help"],
    "compare": ["seeds=", "--help"],
    "plan": ["measure=", "--help"],
    "recipe": ["--help"],
    "fork": ["--round", "--help"],
}
"""Verbs that take Hydra overrides, with what they take beside."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's argument."""
    parser.add_argument("shell", choices=("bash",), help="whose script is printed")


def run(arguments: argparse.Namespace) -> int:
    """Print the script; ``arguments.verbs`` has each verb's parser."""
    verbs: Mapping[str, argparse.ArgumentParser] = arguments.verbs
    print(script({name: list(verb._option_string_actions) for name, verb in verbs.items()}), end="")
    return 0


def script(flags: Mapping[str, list[str]]) -> str:
    """Return a script for bash that completes the verbs, each with its flags, or with overrides."""
    from fedhubert.compose import group_choices
    from fedhubert.compose.recipes import recipe_names
    from fedhubert.config.catalog import all_keys

    keys = [f"{name}=" for name, key in all_keys().items() if not key.is_group]
    choices = [f"{group}={name}" for group, names in group_choices().items() for name in names]
    takes = {**flags, **{name: [*own, *choices, *keys] for name, own in _TRAINING.items()}}
    takes["recipe"] = [*recipe_names(), *takes["recipe"]]
    cases = [f'      {verb}) words="{" ".join(words)}" ;;' for verb, words in takes.items()]
    return _BASH.format(verbs=" ".join(flags), cases="\n".join(cases))
