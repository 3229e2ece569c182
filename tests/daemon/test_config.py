"""Where settings come from, and which source wins."""

import pytest

from overlayd.daemon import config
from overlayd.daemon.cluster import settings
from overlayd.daemon.dns.upstreams import Upstream


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
        ('sokcet = "/x"', "overlayd.toml: unknown setting sokcet; .*; did you mean socket"),
        (f"# {'x' * 2**20}", "overlayd.toml: more than 1048576 bytes"),
        ("socket = 7", "^socket: 7 is not text: write it in quotes$"),
        ("metrics = 9586", "^metrics: 9586 is not text: write it in quotes$"),
        ("dns-port = 70000", "^dns-port: 70000 is not a number from 0 to 65535$"),
        ('max-connections = "many"', "^max-connections: 'many' is not a number from 1 to 1048576$"),
        ('log-level = "WARN"', "^log-level: 'WARN' is none of debug, info, warning, error$"),
        ('metrics-peers = "maybe"', "^metrics-peers: 'maybe' is neither true nor false$"),
        ('wireguard = "magic"', "^wireguard: .*magic"),
        ("socket = ", "overlayd.toml"),
    ],
)
def test_a_bad_file_is_refused_by_key(tmp_path, content, complaint):
    path = tmp_path / "overlayd.toml"
    path.write_text(content)
    with pytest.raises(config.ConfigError, match=complaint):
        load("--config", str(path))


@pytest.mark.parametrize("word", ["1", "true", "True"])
def test_the_node_address_is_served_when_any_source_asks(tmp_path, word):
    assert not load().dns_node_address
    assert load("--dns-node-address").dns_node_address
    assert load(environment={"OVERLAYD_DNS_NODE_ADDRESS": word}).dns_node_address
    path = tmp_path / "overlayd.toml"
    path.write_text("dns-node-address = true\n")
    assert load("--config", str(path)).dns_node_address
    assert not load("--config", str(path), environment={"OVERLAYD_DNS_NODE_ADDRESS": "0"}).dns_node_address
    with pytest.raises(config.ConfigError, match=r"^dns-node-address: "):
        load(environment={"OVERLAYD_DNS_NODE_ADDRESS": "maybe"})


def test_the_command_line_of_another_daemons_init_script_is_taken():
    settings = load("--data-dir", "/d", "--socket", "/s", "--service")
    assert settings == load("--data-dir", "/d", "--socket", "/s")


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


@pytest.mark.parametrize("setting", ["data-dir", "socket"])
def test_an_empty_path_is_refused(setting):
    """It would be the working directory, or a name that the kernel chooses."""
    with pytest.raises(config.ConfigError, match=f"{setting}: the path is empty"):
        load(f"--{setting}", "")


def test_the_name_server_is_on_unless_it_is_turned_off():
    settings = load()
    assert (settings.dns_port, settings.dns_zone, settings.upstreams) == (53, None, ())
    assert load("--dns-port", "0").dns_port == 0
    assert load("--dns-zone", "Svc.Example.").dns_zone == "svc.example"


def test_upstreams_may_be_repeated_or_listed(tmp_path):
    wanted = (Upstream("192.0.2.1"), Upstream("2001:db8::1", 5353))
    path = tmp_path / "overlayd.toml"
    path.write_text('dns-upstream = ["192.0.2.1", "[2001:db8::1]:5353"]\n')
    assert load("--config", str(path)).upstreams == wanted
    assert load(environment={"OVERLAYD_DNS_UPSTREAM": "192.0.2.1, [2001:db8::1]:5353"}).upstreams == wanted
    assert load("--dns-upstream", "192.0.2.1", "--dns-upstream", "[2001:db8::1]:5353").upstreams == wanted


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dns-port", "65536"),
        ("dns-port", "-1"),
        ("dns-zone", "a..b"),
        ("dns-zone", ""),
        ("dns-upstream", "dns.example"),
    ],
)
def test_what_the_name_server_cannot_use_is_refused(option, value):
    with pytest.raises(config.ConfigError, match=option):
        load(f"--{option}={value}")


@pytest.mark.parametrize(
    ("given", "other"),
    [
        (["--cni-socket", "/run/a.sock"], "socket"),
        (["--metrics", "/run/../run/a.sock"], "socket"),
        (["--identity-file", "/run/a.sock"], "socket"),
        (["--identity-file", "/run/a.cni"], "cni-socket"),
        (["--data-dir", "/run/a.sock"], "data-dir"),
    ],
)
def test_one_file_is_not_two_things(given, other):
    with pytest.raises(config.ConfigError, match=f"is what {other} names too"):
        load("--socket", "/run/a.sock", *given)


@pytest.mark.parametrize("option", ["socket", "cni-socket", "metrics", "identity-file"])
@pytest.mark.parametrize("name", ["journal", "journal.new", "lock"])
def test_the_journals_names_are_taken(option, name):
    with pytest.raises(
        config.ConfigError, match=f"^{option}: .* is the name of a file that overlayd keeps in data-dir"
    ):
        load("--data-dir=/var/lib/a", f"--{option}=/var/lib/a/../a/{name}")


def test_a_mistyped_variable_of_the_environment_is_told():
    given = {"OVERLAYD_SOKCET": "", "OVERLAYD_SOCKET": "", "OVERLAYD_TEARDOWN": "1", "OVERLAYD_CONFIG": "", "HOME": ""}
    told = config.perhaps_settings({**given, "OVERLAYD_OF_SOMEBODY_ELSE": ""})
    assert told == [
        "OVERLAYD_SOKCET is no setting: did you mean SOCKET or CNI_SOCKET?",
        "OVERLAYD_TEARDOWN is no setting: --teardown is of the command line alone",
    ]


def test_settings_of_a_cluster_are_told_where_there_is_no_etcd():
    given = ("--cluster", "prod", "--node", "n1", "--advertise", "192.0.2.1:51820", "--etcd-user", "me")
    assert config.without_etcd(load(*given)) == ["cluster", "node", "advertise", "etcd-user"]
    assert config.without_etcd(load(*given, "--etcd", "http://127.0.0.1:2379")) == []
    assert config.without_etcd(load()) == []


@pytest.mark.parametrize("address", ["0.0.0.0", "[::]", "224.0.0.1", "255.255.255.255"])
def test_nobody_is_advertised(address):
    given = load("--etcd", "http://127.0.0.1:2379", "--cluster", "prod", "--advertise", f"{address}:51820")
    with pytest.raises(config.ConfigError, match=r"^advertise: .* is the address of"):
        settings.read(given)


def test_an_option_that_is_none_is_told_the_nearest(capsys):
    for words in (["--clustr", "prod"], ["--clustr=prod"]):
        with pytest.raises(SystemExit):
            load(*words)
        assert "unrecognized arguments: --clustr" in (told := capsys.readouterr().err)
        assert "; did you mean --cluster" in told


def test_a_port_that_is_none_is_told_with_its_url():
    with pytest.raises(config.ConfigError, match=r"etcd: https://192\.0\.2\.1:99999: no port is so called"):
        settings.read(load("--etcd", "https://192.0.2.1:99999", "--cluster", "prod"))


def test_what_removes_everything_does_not_keep_it(capsys):
    with pytest.raises(SystemExit) as caught:
        load("--teardown", "--adopt")
    assert caught.value.code == 2
    assert "not allowed with argument --teardown" in capsys.readouterr().err


def test_a_relative_path_in_a_directory_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(config.ConfigError, match="relative, and the current directory is gone"):
        load("--data-dir=data")
