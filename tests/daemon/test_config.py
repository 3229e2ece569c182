"""Where settings come from, and which source wins."""

import pytest

from overlayd.daemon import config


def load(*arguments, environment=None):
    return config.load(config.parser().parse_args(arguments), environment or {})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "overlayd.toml"
    path.write_text('data-dir = "/from/file"\nsocket-group = "file"\nlog-level = "debug"\n')
    return str(path)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(file):
    environment = {"OVERLAYD_DATA_DIR": "/from/environment", "OVERLAYD_SOCKET_GROUP": "environment"}
    settings = load("--config", file, "--data-dir", "/from/line", environment=environment)
    assert (settings.data_dir, settings.socket_group, settings.log_level) == ("/from/line", "environment", "debug")


def test_the_environment_may_name_the_file(file):
    assert load(environment={"OVERLAYD_CONFIG": file}).data_dir == "/from/file"


def test_without_any_source_there_are_defaults():
    assert load() == config.Config()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('data_dir = "/x"', "overlayd.toml: unknown setting data_dir; there is data-dir, "),
        ("socket = 7", "^socket: "),
        ('wireguard = "magic"', "^wireguard: .*magic"),
        ("socket = ", "overlayd.toml"),
    ],
)
def test_a_bad_file_is_refused_by_key(tmp_path, content, complaint):
    path = tmp_path / "overlayd.toml"
    path.write_text(content)
    with pytest.raises(config.ConfigError, match=complaint):
        load("--config", str(path))


def test_a_missing_file_that_was_named_is_an_error():
    with pytest.raises(config.ConfigError, match="no such file"):
        load("--config", "/nonexistent/overlayd.toml")


def test_a_bad_variable_is_refused():
    with pytest.raises(config.ConfigError, match="log-level"):
        load(environment={"OVERLAYD_LOG_LEVEL": "loud"})


def test_a_socket_path_too_long_for_the_kernel_is_refused():
    assert load("--socket", "/" + "s" * 106)
    with pytest.raises(config.ConfigError, match="107 bytes"):
        load("--socket", "/" + "s" * 107)
