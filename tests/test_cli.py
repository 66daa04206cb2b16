"""The command as it is typed: real processes, and what they say when something is wrong."""

import asyncio
import contextlib
import importlib.metadata
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from swr.cli.main import main
from swr.cli.proxy import _without_traceback
from tests.servers import Server, free_port
from tests.test_proxy import OK, PATIENCE, Upstream, body_of, pour, talk, when_released

GET = b"GET /a%2Fb HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
# The rule that `--fresh-for` makes does not apply to an encoded slash.
PLAIN = GET.replace(b"%2F", b"/")


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `python -m swr`; give the process and the first line that it says."""
    process = subprocess.Popen(
        [sys.executable, "-m", "swr", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        line = process.stdout.readline().decode() if ready else ""
        assert line, process.stderr.read().decode() if process.poll() is not None else "it says nothing"
        yield process, line.removesuffix("\n")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE)


def port_of(line: str) -> int:
    return int(line.partition(" -> ")[0].rpartition(":")[2])


@contextlib.contextmanager
def proxying(upstream: Upstream, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with started("proxy", upstream.url, "--listen", "127.0.0.1:0", *arguments) as (process, line):
        yield process, port_of(line)


def state(answer: bytes) -> bytes:
    [line] = [line for line in answer.split(b"\r\n") if line.startswith(b"swr-state: ")]
    return line.removeprefix(b"swr-state: ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 128 + signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)])
def test_proxy_answers_requests_under_way_before_a_signal_ends_it(number, code):
    with Upstream(when_released(OK)) as upstream, proxying(upstream) as (process, port):
        answers = []
        reader = threading.Thread(target=lambda: answers.append(talk(port, GET)))
        reader.start()
        assert upstream.got.acquire(timeout=PATIENCE)
        process.send_signal(number)
        # It listens no longer, and goes on answering.
        until = time.monotonic() + PATIENCE
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < until:
                socket.create_connection(("127.0.0.1", port), PATIENCE).close()
        upstream.release.set()
        reader.join(PATIENCE)
        assert body_of(answers[0]) == b"ok"
        out, error = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, error) == (code, b"", b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 128 + signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)])
def test_granian_serves_from_the_cache_until_a_signal_comes(number, code):
    """Who: an operator with more requests than uvicorn answers on one core, behind a balancer that limits clients."""
    with Upstream() as upstream, proxying(upstream, "--server", "granian", "--fresh-for", "60") as (process, port):
        assert [state(talk(port, PLAIN)) for _ in range(2)] == [b"missing", b"fresh"]
        assert upstream.last.target == b"/a/b"
        assert upstream.last.values("x-forwarded-for") == [b"127.0.0.1"]
        process.send_signal(number)
        out, error = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, error) == (code, b"", b"")


def test_truncated_answer_never_looks_complete_under_granian():
    half = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"
    quiet = ("--server", "granian", "--log-level", "error", "--timeout", "2")
    with Upstream(half) as upstream, proxying(upstream, *quiet) as (_, port):
        answer = talk(port, GET)
        assert not answer.endswith(b"0\r\n\r\n")
        assert not answer.startswith(b"HTTP/1.1 200 ") or answer.endswith(b"half\r\n")


def test_proxy_prints_its_address_and_the_upstream_url_when_it_is_ready():
    with Upstream() as upstream:
        port = free_port()
        with started("proxy", upstream.url, "--listen", f"127.0.0.1:{port}") as (_, line):
            assert line == f"swr: http://127.0.0.1:{port} -> {upstream.url}"
            answer = talk(port, GET)
        assert body_of(answer) == b"ok"
        assert upstream.last.target == b"/a%2Fb"
        # Not the server's own Date and Server, and once.
        assert answer.lower().count(b"\r\ndate: ") == 1
        assert b"\r\nserver: " not in answer.lower()


def test_fresh_for_and_stale_for_apply_to_responses_without_freshness():
    with Upstream() as upstream, proxying(upstream, "--fresh-for", "0", "--stale-for", "10m") as (_, port):
        assert [state(talk(port, PLAIN)) for _ in range(2)] == [b"missing", b"stale"]


@pytest.mark.parametrize(
    ("field", "options"),
    [
        (b"X-App-Version: 1", ("--ignore-fields", "X-App-Version, X-Other")),
        # RFC 9111 7.3: cookies by themselves do not forbid storing.
        (b"Cookie: a=b", ("--cookies", "rfc9111")),
    ],
)
def test_request_field_that_an_option_ignores_does_not_prevent_a_hit(field, options):
    asked = PLAIN.replace(b"Host", field + b"\r\nHost")
    with Upstream() as upstream:
        with proxying(upstream, "--fresh-for", "60") as (_, port):
            assert [state(talk(port, asked)) for _ in range(2)] == [b"missing", b"missing"]
        with proxying(upstream, "--fresh-for", "60", *options) as (_, port):
            assert [state(talk(port, asked)) for _ in range(2)] == [b"missing", b"fresh"]


def test_invalid_name_in_ignore_fields_is_reported(capsys):
    assert run("proxy", "http://x", "--ignore-fields", "X-A, a b") == 2
    assert capsys.readouterr().err.startswith(
        "swr: ignore_fields=('X-A', 'a b') holds 'a b', which is not the name of a field"
    )


def test_second_proxy_gets_a_fresh_hit_from_the_shared_server(server: Server):
    options = ("--fresh-for", "60", "--redis", server.url, "--namespace", "cli")
    with Upstream() as upstream, proxying(upstream, *options) as (_, one), proxying(upstream, *options) as (_, other):
        # The host is part of the key, and the same here.
        assert [state(talk(port, PLAIN)) for port in (one, other)] == [b"missing", b"fresh"]
        assert len(upstream.asked) == 1


def test_service_slower_than_the_timeout_gives_504():
    with Upstream(when_released(OK)) as upstream, proxying(upstream, "--timeout", "50ms") as (_, port):
        assert talk(port, GET).startswith(b"HTTP/1.1 504 ")


def test_endless_answer_is_cut_off_after_the_hard_timeout():
    options = ("--fresh-for", "60", "--hard-timeout", "3s", "--log-level", "warning")
    with Upstream(pour) as upstream, proxying(upstream, *options) as (process, port):
        answer = talk(port, PLAIN)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert not answer.endswith(b"0\r\n\r\n")
        assert upstream.left.wait(PATIENCE)
        process.terminate()
        _, error = process.communicate(timeout=PATIENCE)
        assert b"hard_timeout" in error
        assert b"Traceback" not in error


def test_idle_clients_are_disconnected_after_their_timeouts():
    options = ("--head-timeout", "200ms", "--client-timeout", "300ms", "--keep-alive", "100ms")
    with Upstream() as upstream, proxying(upstream, *options) as (_, port):
        for sent in (b"", b"GET / HTTP/1.1\r\n", PLAIN.replace(b"Connection: close\r\n", b""),
                     b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"):  # fmt: skip
            said = talk(port, sent)
            assert said[:13] in (b"", b"HTTP/1.1 408 ", b"HTTP/1.1 200 ")


def long(upstream: Upstream, connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % 2**26)
    for _ in range(2**10):
        connection.sendall(b"x" * 2**16)


@pytest.mark.parametrize("kind", ["send nothing", "send half", "read nothing"])
def test_hundred_stalled_clients_do_not_block_another_client(kind):
    """By default 100 connections go to the service, and a client may be half a minute behind."""
    sent = {
        "send nothing": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n",
        "send half": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
        "read nothing": b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n",
    }[kind]
    number = 100

    def run(upstream: Upstream, connection: socket.socket) -> None:
        if upstream.last.target == b"/long":
            long(upstream, connection)
        else:
            connection.sendall(OK)

    with Upstream(run) as upstream, proxying(upstream) as (_, port), contextlib.ExitStack() as stack:
        for _ in range(number):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(sent)
        until = time.monotonic() + PATIENCE
        while kind != "send nothing" and upstream.opened < number and time.monotonic() < until:
            time.sleep(0.01)
        # A client gives way when it is behind, which takes as long as its answer needs to fill the buffers.
        while (body := body_of(talk(port, PLAIN))) != b"ok" and time.monotonic() < until:
            time.sleep(0.1)
        assert body == b"ok"


def test_host_of_an_absolute_target_replaces_the_host_field():
    """RFC 9112 3.2.2"""
    with Upstream() as upstream, proxying(upstream) as (_, port):
        talk(port, PLAIN.replace(b" /a", b" http://other:80/a"))
        assert (upstream.last.target, upstream.last.values("host")) == (b"/a/b", [b"other:80"])


@pytest.mark.parametrize("option", [(), ("--trust-forwarded",)])
def test_forwarded_fields_of_a_request_are_dropped_unless_trusted(option):
    """RFC 7239 8.1: not even on the loopback, as uvicorn would have it."""
    with Upstream() as upstream, proxying(upstream, *option) as (_, port):
        talk(port, GET.replace(b"Host", b"X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nHost"))
        assert upstream.last.values("x-forwarded-for") == [b"10.0.0.1, 127.0.0.1" if option else b"127.0.0.1"]
        assert upstream.last.values("x-forwarded-proto") == [b"https" if option else b"http"]


def test_upgrade_request_is_answered_without_passing_the_upgrade_on():
    """RFC 9110 7.8: a server may go on as if it had not been asked."""
    with Upstream() as upstream, proxying(upstream, "--log-level", "error") as (_, port):
        answer = talk(port, GET.replace(b"close", b"close, Upgrade").replace(b"Host", b"Upgrade: websocket\r\nHost"))
        assert body_of(answer) == b"ok"
        assert not upstream.last.names & {"upgrade", "connection"}


def test_invalid_answer_of_the_service_gives_502_and_a_warning():
    with Upstream() as upstream, proxying(upstream, "--log-level", "warning") as (process, port):
        upstream.answers[0] = b"nonsense\r\n\r\n"
        assert talk(port, GET).startswith(b"HTTP/1.1 502 ")
        process.terminate()
        _, error = process.communicate(timeout=PATIENCE)
        assert b" WARNING swr: GET '/a/b': The service gave no valid answer. (RemoteProtocolError(" in error


@pytest.mark.parametrize("error", [TimeoutError("it took too long"), ConnectionError("it broke off")])
def test_error_of_a_request_is_logged_in_one_line_without_traceback(error, caplog):
    async def app(scope, receive, send):
        raise error

    asyncio.run(_without_traceback(app)({"method": "GET", "path": "/"}, None, None))
    assert caplog.messages == [f"GET '/': {error}"]


# -- in this process ------------------------------------------------------------------------------------------


def run(*arguments: str) -> object:
    """Run the command here; an exit is a code too."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("name", ["uvicorn", "granian"])
@pytest.mark.parametrize(("listen", "host"), [("127.0.0.1:{}", "127.0.0.1"), ("[::1]:{}", "[::1]"), (":{}", "0.0.0.0")])
def test_main_serves_until_an_interrupt_and_returns_130(listen, host, name, capfd):
    """The signal interrupts the server, which passes the interrupt on to `main`."""
    port, done = free_port(), threading.Event()
    address = ("::1" if "::1" in host else "127.0.0.1", port)
    answers: list[bytes] = []

    def interrupt() -> None:
        until = time.monotonic() + PATIENCE
        while not answers and not done.is_set() and time.monotonic() < until:
            with contextlib.suppress(ConnectionError), socket.create_connection(address, PATIENCE) as connection:
                connection.sendall(GET)
                answers.append(b"".join(iter(lambda: connection.recv(65536), b"")))
        if not done.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    with Upstream() as upstream:
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            code = run("proxy", upstream.url, "--listen", listen.format(port), "--server", name)
        finally:
            done.set()
            thread.join(PATIENCE)
        assert (code, body_of(answers[0])) == (130, b"ok")
        assert capfd.readouterr().out == f"swr: http://{host}:{port} -> {upstream.url}\n"


def test_exit_code_is_130_after_an_interrupt_of_uvicorn_and_0_otherwise(monkeypatch):
    """uvicorn raises the interrupt again after it has closed everything."""
    for interrupted, code in ((KeyboardInterrupt, 130), (None, 0)):
        with monkeypatch.context() as patched:

            def serve(server, sockets, interrupted=interrupted):
                with sockets[0]:
                    if interrupted is not None:
                        raise interrupted

            patched.setattr(uvicorn.Server, "run", serve)
            assert run("proxy", "http://x", "--listen", "127.0.0.1:0") == code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "swr: the following arguments are required: command (swr --help)"),
        (("proxy",), "swr: the following arguments are required: upstream (swr proxy --help)"),
        (
            ("serve",),
            "swr: argument command: invalid choice: 'serve' (choose from 'proxy', 'dashboard', 'top', 'refresh', 'queue', 'warm', 'keys', 'inspect', 'invalidate') (swr --help)",
        ),
        (
            ("proxy", "http://x", "--listen", "8000"),
            "swr: argument --listen: '8000' must be host:port, such as 127.0.0.1:8000, [::1]:8000 or :8000 (swr proxy --help)",
        ),
        (
            ("proxy", "http://x", "--listen", "::1:8000"),
            "swr: argument --listen: '::1:8000': write an IPv6 address in brackets, [::1]:8000 (swr proxy --help)",
        ),
        (
            ("proxy", "http://x", "--max-connections", "many"),
            "swr: argument --max-connections: invalid int value: 'many' (swr proxy --help)",
        ),
        (
            ("proxy", "ftp://x"),
            "swr: upstream='ftp://x' is not a valid http:// or https:// URL: give one such as \"http://127.0.0.1:9000\"",
        ),
        (
            ("proxy", "http://x", "--stale-for", "60"),
            "swr: --stale-for and --stale-if-error count from --fresh-for: give it too",
        ),
        *(
            (("proxy", "http://x", f"--{name}-timeout", "0"), f"swr: {said}")
            for name, said in (
                ("head", "--head-timeout must be more than 0 seconds"),
                ("client", "client_timeout=0.0 must be more than 0 seconds"),
                ("hard", "hard_timeout=0.0 leaves no time at all: give more than 0 seconds, or None for no limit"),
            )
        ),
        (("proxy", "http://x", "--keep-alive", "0"), "swr: --keep-alive must be more than 0 seconds"),
        (
            ("proxy", "http://x", "--redis", "redis:6379"),
            "swr: 'redis:6379' does not begin with redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, "
            "redis+cluster://, rediss+cluster://",
        ),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(arguments, said, capsys):
    assert run(*arguments) == 2
    out, error = capsys.readouterr()
    # Whether argparse quotes the choices depends on the version of Python.
    assert (out, error.replace("'", "")) == ("", said.replace("'", "") + "\n")


@pytest.mark.parametrize("port", ["x", "-1", "65536", "", "٣"])
def test_port_that_is_no_valid_number_is_refused(port, capsys):
    assert run("proxy", "http://x", "--listen", f"127.0.0.1:{port}") == 2
    assert "must be host:port" in capsys.readouterr().err


def test_invalid_duration_is_reported_with_an_example(capsys):
    assert run("proxy", "http://x", "--fresh-for", "soon") == 2
    assert capsys.readouterr().err.startswith("swr: fresh_for='soon' is not a duration: give seconds (60)")


def test_port_in_use_ends_the_command_with_code_1(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run("proxy", "http://x", "--listen", f"127.0.0.1:{port}") == 1
    assert capsys.readouterr().err.startswith(f"swr: cannot listen on 127.0.0.1:{port}: Address already in use")


def test_missing_granian_is_reported_with_the_install_command(capsys, monkeypatch):
    for module in ["granian", *(name for name in sys.modules if name.startswith("granian."))]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "swr.proxy.granian_server", raising=False)
    assert run("proxy", "http://x", "--server", "granian") == 1
    error = capsys.readouterr().err
    assert error.startswith("swr: --server granian needs granian and uvloop (")
    assert error.endswith("): pip install 'swr[granian]'\n")


def test_keep_alive_option_is_refused_with_granian(capsys):
    assert run("proxy", "http://x", "--server", "granian", "--keep-alive", "5") == 2
    assert (
        "does not work with granian: use --head-timeout, which also counts between two requests"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("missing", ["httpx", "uvicorn"])
def test_missing_httpx_or_uvicorn_is_reported_with_the_install_command(missing, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    for module in [name for name in sys.modules if name.startswith("swr.proxy")]:
        monkeypatch.delitem(sys.modules, module)
    assert run("proxy", "http://x") == 1
    error = capsys.readouterr().err
    assert error.startswith("swr: proxy needs httpx and uvicorn (")
    assert error.endswith("): pip install 'swr[proxy]'\n")
    assert len(error.splitlines()) == 1


def unfolded(text: str) -> str:
    """Return the words of a help, whatever the terminal's width."""
    return " ".join(text.replace("\\\n", "").split())


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize(
    "command",
    ["", "proxy", "dashboard", "top", "refresh", "warm", "keys", "inspect", "invalidate", "queue", "queue status", "queue retry"],
)  # fmt: skip
def test_help_fits_the_width_of_the_terminal(capsys, monkeypatch, width, command):
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(*command.split(), "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    # A word that is longer, or the alternatives of a usage, stay whole.
    assert max(map(len, lines)) <= max(width, 80)
    assert not [line for line in lines if line.rstrip() != line]
    assert not any("\\\\" in line for line in lines)


@pytest.mark.parametrize("command", ["proxy", "dashboard", "top", "refresh", "warm", "keys", "inspect", "invalidate"])
def test_examples_in_help_are_the_same_commands_at_every_terminal_width(capsys, monkeypatch, command):
    """A line that continues ends in a backslash, so that a user can paste it into a shell."""
    shown = []
    for width in (60, 80, 250):
        monkeypatch.setenv("COLUMNS", str(width))
        assert run(command, "--help") == 0
        _, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
        lines = re.sub(r" \\\n +", " ", examples).splitlines()
        shown.append([line for line in lines if re.match(r"  \S", line)])
    assert shown[0] == shown[1] == shown[2] != []


@pytest.mark.parametrize("arguments", [("proxy", "http://127.0.0.1:1"), ("dashboard", "--redis", "redis://x")])
def test_json_option_is_refused_by_proxy_and_dashboard(capsys, arguments):
    assert run(*arguments, "--json") == 2
    assert "unrecognized arguments: --json" in capsys.readouterr().err


def test_version_option_prints_the_installed_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"swr {importlib.metadata.version('swr')}\n"


def test_error_about_an_unknown_option_hides_the_password(capsys):
    assert run("inspect", "k", "--wrong", "redis://app:pass@word@10.0.0.1:6379/0") == 2
    said = capsys.readouterr().err
    assert "redis://…@10.0.0.1:6379/0" in said
    assert "word" not in said


@pytest.mark.parametrize(
    ("arguments", "hidden"),
    [
        (("inspect", "k", "redis://app:pa'ss wo\"rd@10.0.0.1"), "redis://…@10.0.0.1"),
        (("inspect", "k", "redis://10.0.0.1?password=word"), "redis://10.0.0.1?…"),
        (("refresh", "redis://app:pass.word@10.0.0.1"), "'redis://…@10.0.0.1' must be MODULE:NAME"),
        (("warm", "app:word@10.0.0.1", "--keys", "a"), "'…@10.0.0.1' must be MODULE:NAME"),
        (("invalidate", "--loader", "http:pass@word", "a"), "'…@word' must be MODULE:NAME"),
    ],
)
def test_error_about_a_misplaced_url_hides_the_password(arguments, hidden, capsys):
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert hidden in said
    assert "pa" not in said.replace("password=", "").replace("parser", "")
    assert "wo" not in said.replace("'…@word'", "")


@pytest.mark.parametrize("ends", ["stdout", "both"])
@pytest.mark.parametrize("arguments", [("queue", "status"), ("queue", "status", "--json"), ("queue", "dead", "--watch", "0.01")])  # fmt: skip
def test_closed_pipe_ends_the_command_with_the_sigpipe_code_and_no_message(arguments, ends, server: Server):
    """`swr queue status | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        error = writing if ends == "both" else subprocess.PIPE
        done = subprocess.run(
            [sys.executable, "-m", "swr", *arguments],
            env={**os.environ, "SWR_REDIS_URL": server.url},
            stdout=writing,
            stderr=error,
            timeout=PATIENCE,
        )
    finally:
        os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE
    assert not done.stderr


def test_output_after_a_broken_pipe_is_discarded_without_error(monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["--version"]) == 128 + signal.SIGPIPE
        print("still", file=out, flush=True)
        monkeypatch.undo()


def test_help_shows_examples_and_units_of_durations(capsys):
    assert run("--help") == 0
    assert "a caching reverse proxy in front of an HTTP service" in capsys.readouterr().out
    assert run("proxy", "--help") == 0
    said = unfolded(capsys.readouterr().out)
    assert "swr proxy http://127.0.0.1:9000 --fresh-for 60 --stale-for 10m --stale-if-error 1d" in said
    assert "500ms, 90s, 10m, 12h, 1d, 2w" in said


def test_python_m_swr_prints_the_usage_of_swr():
    done = subprocess.run([sys.executable, "-m", "swr", "--help"], capture_output=True, check=True, text=True)
    assert done.stdout.startswith("usage: swr [-h] [--version] command")


def test_module_runs_the_command_only_when_run_as_main(monkeypatch):
    import runpy

    monkeypatch.setattr(sys, "argv", ["swr"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("swr", run_name="__main__")
    assert runpy.run_module("swr", run_name="other")["main"] is main
