"""The one door for configurations: YAML of bounded size whose values have the types they need.

``read_config`` reads a file, ``parse_value`` a word of a command line; ``check_model`` knows what
the classes of a model take, and ``building`` says in one line why they cannot be made.
``guard_espnet`` has ESPnet's own parsers read through this module.
"""

import argparse
import inspect
import math
from contextlib import contextmanager
from types import SimpleNamespace

import yaml
from typeguard import TypeCheckError, check_type

from espnet_ext.errors import UserError, about, floats, short
from espnet_ext.files import MB, read_bytes
from espnet_ext.options import checked, did_you_mean, take_defaults, usage_error

MOST_BYTES = 16 * MB
MOST_VALUES = 10**6  # aliases counted as often as they are used
DEEPEST = 50
#: of numbers in a model: beyond, making it takes days or more memory than there is
LARGEST = 10**8
MOST_BLOCKS = 1000
#: options of a model that count something
COUNTS = (
    *("fs", "n_fft", "win_length", "hop_length", "n_mels", "output_size", "attention_heads"),
    *("linear_units", "num_blocks", "cnn_module_kernel", "cgmlp_linear_units", "cgmlp_conv_kernel"),
)
#: sections of options that may be null: those of what a model need not have
OPTIONAL = ("joint_net_conf", "transducer_conf")

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, but slow, where C is missing


def read_config(path) -> dict:
    """The mapping of options in a YAML file.

    Raises:
        UserError: The file is unreadable, larger, deeper or of more values (aliases followed) than
            any configuration, no mapping of options, a ``*_conf`` in it is none, or a number is
            not-a-number; the message names the file and the key.
    """
    content = read_bytes(path, MOST_BYTES + 1)
    with about(path):
        config = _load(content)
        if not isinstance(config, dict):
            raise UserError(f"must be a mapping of options, 'key: value', got {_show(config)}")
        _check_names(config)
        for key, value in config.items():
            if not key.endswith("_conf") or (value is None and key in OPTIONAL):
                continue
            if not isinstance(value, dict):
                what = f"got {_show(value)}; give {{}} for the defaults"
                raise UserError(f"{key}: must be a mapping of options, {what}")
            _check_names(value, f"{key}: ")
    return config


def parse_with_file(parser, args, option):
    """Parse ``args``, with the values of the YAML that an option names as defaults."""
    found = parser.parse_args(args)
    if file := getattr(found, option):
        take_defaults(parser, read_config(file), file)
        found = parser.parse_args(args)
    return found


def parse_value(word: str):
    """The value of a word in YAML, such as ``64``, ``true`` or ``[64, 32]``."""
    return _load(word.encode("utf-8", "surrogatepass"))


def _load(content):
    if len(content) > MOST_BYTES:
        raise UserError(f"is larger than {MOST_BYTES // MB} MB, so it is no configuration")
    try:
        text = content.decode("utf-8-sig")
        _measure(yaml.parse(text, _Loader))
        config = yaml.load(text, _Loader)  # noqa: S506  of YAML's plain values only
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"is not YAML: {' '.join(str(error).split())}") from None
    for keys, number in floats(config):
        if math.isnan(number):
            raise UserError(f"{'.'.join(keys)}: is not a number")
    return config


def _measure(events):
    """Refuse what is too deep or, its aliases followed, too large to be loaded."""
    values, known, opened = 0, {}, []
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            known[anchor] = values - before
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in known:
                raise UserError(f"*{event.anchor}: refers to itself or to nothing")
            values += known[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, values))
            values += 1
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            known[event.anchor] = 1
        if values > MOST_VALUES:
            raise UserError(f"has more than {MOST_VALUES} values, so it is no configuration")
        if len(opened) > DEEPEST:
            raise UserError(f"is nested deeper than {DEEPEST}, so it is no configuration")


def _check_names(options, where=""):
    for key in options:
        if not isinstance(key, str):
            raise UserError(f"{where}{_show(key)} is no name of an option")


def _show(value):
    """A value as YAML writes it."""
    words = {None: "nothing", True: "true", False: "false"}
    return short(words[value] if value is None or isinstance(value, bool) else repr(value))


def check_model(config: dict, task) -> None:
    """Compare the options of a model with what its classes take, before one of them is made.

    Args:
        config: Of a training, or of conf/; names and numbers in it are written as ESPnet reads
            them.
        task: ESPnet task, such as ``ASRTask``.

    Raises:
        UserError: A class or an option is unknown, or an option is of another type or too large;
            the message names it.
    """
    choices = {choice.name: choice for choice in task.class_choices_list}
    for action in task.get_parser()._actions:
        name = action.dest
        if name in config and (name in choices or name in TEXT or name.endswith("_conf")):
            config[name] = checked(action, config[name])
    if "ctc_conf" in config:
        from espnet2.asr.ctc import CTC  # here: who only reads a file need not wait for it

        check_options(CTC, config["ctc_conf"], "ctc")
    for name, choice in choices.items():
        if config.get(name) is not None and name != "preprocessor":
            check_options(choice.get_class(config[name]), config.get(f"{name}_conf", {}), name)


#: options of a model that are no class
TEXT = ("token_list", "token_type", "bpemodel", "input_size", "init", "cleaner", "g2p")


def check_options(cls, conf: dict, name: str) -> None:
    """Compare options with the arguments of a class and of those that it passes others on to.

    Args:
        cls: The class.
        conf: Its options.
        name: Of the part of the model, such as ``encoder``.

    Raises:
        UserError: An option is unknown, of another type or too large.
    """
    known, open_ended = {}, True
    for one in cls.__mro__:
        if "__init__" in vars(one) and open_ended:
            found = inspect.signature(one.__init__).parameters
            known = {**found, **known}
            open_ended = any(p.kind is p.VAR_KEYWORD for p in found.values())
    for key, value in conf.items():
        if key not in known and not open_ended:
            near = did_you_mean(key, known)
            raise UserError(f"{name}_conf: {key}: {cls.__name__} takes no such option{near}")
        _check_size(f"{name}_conf: {key}", value)
        if key in known:
            _check_type(f"{name}_conf: {key}", value, known[key])
        number = isinstance(value, (int, float))
        if number and (key in COUNTS and value < 1):
            raise UserError(f"{name}_conf: {key}: must be at least 1, got {_show(value)}")
        if number and key.endswith("dropout_rate") and not 0 <= value <= 1:
            raise UserError(f"{name}_conf: {key}: must be 0 to 1, got {_show(value)}")


def _check_size(key, value):
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_size(key, inner)
    elif isinstance(value, int) and abs(value) > (MOST_BLOCKS if "num_blocks" in key else LARGEST):
        raise UserError(f"{key}: {_show(value)} is too large for any model")


def _check_type(key, value, parameter):
    wanted, default = parameter.annotation, parameter.default
    if wanted is parameter.empty or isinstance(wanted, str) or value == default:
        return
    if isinstance(value, list) and isinstance(default, tuple) and tuple(value) == default:
        return  # as a training writes it
    rule = getattr(wanted, "__name__", str(wanted)) if isinstance(wanted, type) else str(wanted)
    is_number = isinstance(value, bool) and "bool" not in rule and "Any" not in rule
    try:
        if not is_number:
            check_type(value, wanted)
            return
    except TypeCheckError:
        pass
    raise UserError(f"{key}: must be {rule.replace('typing.', '')}, got {_show(value)}")


@contextmanager
def building(path):
    """Say in one ``UserError``, naming the configuration, why nothing can be built from it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {_reason(error)}") from error


def _reason(error):
    """What is wrong with options, by what building from them raised."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: cannot be read ({error.strerror})"
    if isinstance(error, AttributeError) and isinstance(error.obj, argparse.Namespace):
        return f"has no {error.name}; take the config.yaml that the training wrote"
    said = " ".join(str(error).split()) or "impossible options"
    return f"the model cannot be built: {type(error).__name__}: {said}"


def guard_espnet() -> None:
    """Have ESPnet's command lines read configurations through this module."""
    from espnet2.utils import config_argparse, nested_dict_action

    class ConfigParser(config_argparse.ArgumentParser):
        """ESPnet's parser: its ``--config`` through this module, its errors in one line."""

        def parse_known_args(self, args=None, namespace=None):
            """See ``argparse.ArgumentParser``."""
            plain = argparse.ArgumentParser.parse_known_args
            known, _ = plain(self, args, namespace)
            if known.config is not None:
                values = read_config(known.config)
                values = {key: value for key, value in values.items() if key != "config"}
                take_defaults(self, values, known.config)
            return plain(self, args, namespace)

        def error(self, message):
            """See ``argparse.ArgumentParser``."""
            usage_error(message)

    config_argparse.ArgumentParser = ConfigParser
    nested_dict_action.yaml = SimpleNamespace(safe_load=parse_value)
