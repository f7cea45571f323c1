"""Clients that others wrote: openai's Python package, and LangChain over it."""

import asyncio

import pytest

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as found:
        yield found


def test_openai_completes_and_streams(client):
    body = {"model": "tiny", "prompt": "The ", "max_tokens": 23, "seed": 1}
    whole = client.completions.create(**body)
    assert whole.choices[0].text == "cat sat, the café shut"
    assert whole.usage.completion_tokens == 23
    chunks = list(client.completions.create(**body, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_openai_chats_and_streams(client):
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    body = {"model": "talker", "messages": messages, "max_completion_tokens": 9}
    whole = client.chat.completions.create(**body)
    text = whole.choices[0].message.content
    assert (len(text.encode()), whole.choices[0].finish_reason) == (9, "length")
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(**body, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert last.usage.completion_tokens == 9


def test_openai_gives_our_options_and_reads_our_figures(client):
    more = {"threshold": 0.5, "provisional": True}
    chunks = list(
        client.completions.create(
            model="tiny", prompt="The ", max_tokens=9, stream=True, extra_body=more
        )
    )
    assert any(chunk.choices[0].canvas for chunk in chunks if "canvas" in repr(chunk))
    assert chunks[-1].choices[0].decoding["settings"]["threshold"] == 0.5


def test_openai_raises_its_own_errors(client):
    with pytest.raises(openai.NotFoundError, match="no model 'gone' here"):
        client.completions.create(model="gone", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature must be"):
        client.completions.create(model="tiny", prompt="x", temperature=-1)
    assert [model.id for model in client.models.list()] == ["tiny", "talker"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_openai_asks_side_by_side(server):
    async def main():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as client:

            async def text(size):
                stream = await client.completions.create(
                    model="tiny", prompt="The ", max_tokens=size, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*map(text, (3, 7, 12)))

    assert asyncio.run(main()) == ["cat", "cat sat", "cat sat, the"]


def test_openai_leaves_a_stream(client):
    stream = client.completions.create(model="tiny", prompt="", max_tokens=30_000, stream=True)
    next(iter(stream))
    stream.close()
    found = client.completions.create(model="tiny", prompt="The ", max_tokens=3)
    assert found.choices[0].text == "cat"


def test_langchain_chats_and_streams(server):
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(
        base_url=server.url + "/v1", api_key="none", model="talker", max_tokens=9, temperature=0
    )
    whole = model.invoke("hello").content
    assert len(whole.encode()) == 9
    assert "".join(piece.content for piece in model.stream("hello")) == whole
