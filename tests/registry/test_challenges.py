"""What a 401 asks for: challenges of every shape, what is sent then, and what is never sent unasked."""

import pytest
from guards import PASSWORD, USER, BasicGuard, BearerGuard, Tokens, basic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagekit import BASE
from scripted import Answer

from layerstore import AuthenticationError, LayerStoreError, Registry, RegistryError

OK = Answer(200, {"Content-Type": "application/json"}, b'{"tags":["a"]}')


@pytest.fixture
def tokens(serve):
    return serve(Tokens(users={USER: PASSWORD}))


def refuses(*challenges, status=401):
    return Answer(status, [("WWW-Authenticate", text) for text in challenges])


def sent(server):
    return [request.header("Authorization") for request in server.requests]


# ---- nothing before it is asked for ----
def test_nothing_is_sent_unasked(shelf, connect):
    shelf.put([BASE])
    connect(auth=(USER, PASSWORD)).tags("app")
    assert sent(shelf) == [""]


def test_what_was_asked_for_before_is_sent_at_once(shelf, connect):
    shelf.put([BASE])
    shelf.guard = BasicGuard()
    registry = connect(auth=(USER, PASSWORD))
    registry.tags("app")
    registry.tags("app")
    assert sent(shelf) == ["", basic(), basic()]
    connect(auth=(USER, PASSWORD)).tags("app")
    assert sent(shelf)[3:] == ["", basic()]


def test_a_token_that_was_given_goes_with_every_request(shelf, connect, pull, check):
    put = shelf.put([BASE])
    check(pull(put.reference, auth="a.b-c_d~e+f/g=="), put)
    assert set(sent(shelf)) == {"Bearer a.b-c_d~e+f/g=="} and len(shelf.requests) == 3


def test_a_token_that_was_given_and_is_refused_ends_it(shelf, connect, tokens):
    shelf.guard = BearerGuard(tokens)
    with pytest.raises(AuthenticationError) as caught:
        connect(auth="wr0ng", retries=3).tags("app")
    assert len(shelf.requests) == 1 and tokens.requests == []
    assert caught.value.status == 401 and "wr0ng" not in str(caught.value)


# ---- shapes ----
BASICS = ['Basic realm="here"', 'basic realm="here"', "BASIC REALM=here", "Basic", 'Basic realm="a \\"quoted\\" one", charset="UTF-8"', 'Negotiate, Basic realm="x"', 'Digest realm="a", nonce="b,c", Basic realm="x"',
          'Negotiate abcdef==, Basic realm="x"', "Basic realm=x ,", ",, Basic realm=x", '  Basic   realm = "x"  ']  # fmt: skip


@pytest.mark.parametrize("challenge", BASICS, ids=repr)
def test_basic_in_every_shape(shelf, connect, challenge):
    shelf.put([BASE])
    shelf.guard = BasicGuard(challenge=challenge)
    assert connect(auth=(USER, PASSWORD)).tags("app") == ["1"]


BEARERS = ['Bearer realm="{realm}",service="s",scope="{scope}"', 'bearer REALM="{realm}", Service="s" , SCOPE="{scope}"', 'Bearer realm="{escaped}",service="s",scope="{scope}"', 'Basic realm="x", Bearer realm="{realm}",service="s"',
           'Bearer realm="{realm}",service="s", Basic realm="x"', 'Bearer service=s, realm="{realm}", error="invalid_token", error_description="no, really, \\"no\\""', 'Bearer realm="{realm}",service="s",scope="{scope}",unknown="x=y,Basic"',
           'Negotiate x==, Bearer realm="{realm}",service="s"', 'Bearer realm="{realm}" , service = "s"']  # fmt: skip


@pytest.mark.parametrize("challenge", BEARERS, ids=repr)
def test_bearer_in_every_shape_and_before_basic(shelf, tokens, connect, challenge):
    shelf.put([BASE])
    escaped = tokens.realm.replace("t", "\\t").replace(":", "\\:")
    text = challenge.format(realm=tokens.realm, escaped=escaped, scope="repository:app:pull")
    guard = BearerGuard(tokens, scoped=False)
    shelf.guard = lambda request: refuses(text) if guard(request) else None
    assert connect(auth=(USER, PASSWORD)).tags("app") == ["1"]
    [asked] = tokens.requests
    assert (asked.field("service"), asked.path) == ("s", "/token")
    assert asked.header("Authorization") == basic()
    assert [text.split()[0] for text in sent(shelf)[1:]] == ["Bearer"]


def test_several_headers(shelf, tokens, connect):
    shelf.put([BASE])
    guard = BearerGuard(tokens, scoped=False)
    shelf.guard = lambda request: refuses("Negotiate", 'Basic realm="x"', f'Bearer realm="{tokens.realm}",service="s"', "nonsense \x01") if guard(request) else None
    assert connect(auth=(USER, PASSWORD)).tags("app") == ["1"]


NONE = [(), ("Negotiate",), ("Digest realm=x, nonce=y",), ("",), ('Bearer service="s"',), ("Bearer",), ('Bearer realm=""',), ("\x01\x02",), ('Basic realm="open',), ("= = =",), ("x" * 17_000,), ("Custom",)]


@pytest.mark.parametrize("challenges", NONE, ids=lambda challenges: repr(challenges)[:40])
def test_none_that_is_usable_asks_v2_once(shelf, connect, challenges):
    """And what that says counts: here, Basic."""
    shelf.put([BASE])
    good = BasicGuard()
    shelf.guard = lambda request: None if good(request) is None else good(request) if request.path == "/v2/" else refuses(*challenges)
    if challenges == ('Basic realm="open',):
        try:
            connect(auth=(USER, PASSWORD)).tags("app")
        except AuthenticationError:
            pass
        return
    assert connect(auth=(USER, PASSWORD)).tags("app") == ["1"]
    assert shelf.paths() == ["GET /v2/app/tags/list", "GET /v2/", "GET /v2/app/tags/list"]
    assert sent(shelf) == ["", "", basic()]


@pytest.mark.parametrize("v2", [Answer(200), Answer(404), Answer(401), Answer(401, {"WWW-Authenticate": "Custom x"}), Answer(302, {"Location": "/x"})], ids=lambda answer: str(answer.status))
def test_none_anywhere(shelf, connect, v2):
    shelf.guard = lambda request: v2 if request.path == "/v2/" else refuses()
    with pytest.raises(AuthenticationError) as caught:
        connect(auth=(USER, PASSWORD), retries=2).tags("app")
    assert caught.value.status == 401
    assert len(shelf.asked("GET", "/v2/")) == 1 and len(shelf.asked("GET", "/v2/app/tags/list")) == 1


def test_sixteen_kibibytes_of_challenges(shelf, connect):
    shelf.put([BASE])
    good = BasicGuard()
    many = ["Custom " + "x" * 900] * 15
    shelf.guard = lambda request: refuses(*many, "Basic realm=x") if good(request) else None
    assert connect(auth=(USER, PASSWORD)).tags("app") == ["1"]


# ---- wrong, and anonymous ----
def test_a_wrong_password(shelf, connect):
    shelf.guard = BasicGuard()
    with pytest.raises(AuthenticationError) as caught:
        connect(auth=(USER, "wr0ng"), retries=3).tags("app")
    assert sent(shelf) == ["", basic(USER, "wr0ng")]
    assert (caught.value.status, caught.value.code, caught.value.host) == (401, "UNAUTHORIZED", shelf.host)


def test_basic_without_credentials(shelf, connect):
    shelf.guard = BasicGuard()
    with pytest.raises(AuthenticationError) as caught:
        connect(retries=3).tags("app")
    assert set(sent(shelf)) == {""} and caught.value.status == 401


def test_bearer_without_credentials_is_anonymous(shelf, serve, connect):
    tokens = serve(Tokens())
    shelf.put([BASE])
    shelf.guard = BearerGuard(tokens)
    assert connect().tags("app") == ["1"]
    assert sent(tokens) == [""]


@pytest.mark.parametrize("password", ["", "a:b", "ünï", "with space", "\u20ac" * 40, '"', "\\"])
def test_passwords_are_utf8_and_may_have_colons(shelf, connect, password):
    shelf.put([BASE])
    shelf.guard = BasicGuard("u", password)
    assert connect(auth=("u", password)).tags("app") == ["1"]


@pytest.mark.parametrize("auth", [("a",), ("a", "b", "c"), 5, b"token", ("a", 5), (None, "b"), ["a", "b", "c"], {"a": "b"}], ids=repr)
def test_auth_of_other_types(auth):
    with pytest.raises((TypeError, ValueError)):
        Registry("localhost:1", auth=auth)


@pytest.mark.parametrize("token", ["", " ", "a b", "a\r\nb", "a\x00", "tök", "a\n", "\x7f"], ids=repr)
def test_tokens_that_are_none(token):
    with pytest.raises((TypeError, ValueError)) as caught:
        Registry("localhost:1", auth=token)
    assert token.strip() == "" or token not in str(caught.value)


def test_a_user_with_a_colon_or_control_characters_never_splits_a_header(shelf):
    for pair in (("u:x", "p"), ("u\r\nX: y", "p"), ("u", "p\r\nX: y"), ("u\x00", "p")):
        shelf.guard = BasicGuard("u", "p")
        try:
            with Registry(shelf.url, auth=pair, retries=0, timeout=5) as registry:
                registry.tags("app")
        except (ValueError, LayerStoreError):
            pass
    assert all(not request.header("X") for request in shelf.requests)


def test_a_401_of_each_kind_of_request(shelf, tokens, images, connect, pull):
    """Manifests, blobs, uploads, tags and referrers: each of them may be the first that is asked."""
    put = shelf.put([BASE])
    shelf.guard = BearerGuard(tokens)
    auth = (USER, PASSWORD)
    assert connect(auth=auth).manifest("app:1")[1] == put.manifest
    assert connect(auth=auth).referrers(f"app@{put.digest}") == []
    image = pull(put.reference, auth=auth)
    images.push(image, f"{shelf.host}/new:1", registry=connect(auth=auth))
    assert shelf.manifests["new"]["1"][1] == put.manifest


def test_blobs_alone_may_be_guarded(shelf, pull, check):
    put = shelf.put([BASE])
    good = BasicGuard()
    shelf.guard = lambda request: good(request) if "/blobs/" in request.path else None
    check(pull(put.reference, auth=(USER, PASSWORD)), put)


# ---- drawn ----
TOKEN = st.text(st.sampled_from("abcXYZ019-._~+/="), min_size=1, max_size=8)
JUNK = st.text(st.sampled_from('Basic Bearer realm=",\\ \t;:x\x01é'), max_size=60)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(challenges=st.lists(st.one_of(JUNK, st.builds("{} {}={}".format, TOKEN, TOKEN, TOKEN), st.just("Basic realm=x")), max_size=4))
def test_drawn_challenges_end_as_an_answer_or_an_error_of_ours(shelf, challenges):
    shelf.forget()
    texts = [text.encode("latin-1", "replace").decode("latin-1").strip() for text in challenges]
    shelf.always("GET", ".*", lambda request: OK if request.header("Authorization") == basic() else refuses(*texts))
    with Registry(shelf.url, auth=(USER, PASSWORD), retries=0, timeout=5) as registry:
        try:
            assert registry.tags("app") == ["a"]
        except RegistryError:
            pass
    assert len(shelf.requests) <= 3
    assert set(sent(shelf)) <= {"", basic()}
