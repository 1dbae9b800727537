#!/usr/bin/env python3
"""The official OpenAI client, unchanged, against `volley serve` on the demo pair: every endpoint and
option, streaming and not. Run from the repository's root: openai_client_test.py PROGRAM"""

import json
import sys
import unittest

from serving import SKIPPED, server, wait_at_rest

try:
    import openai
except ImportError:
    print("skipped: the openai client is missing; pip install -r tests/server/requirements.txt")
    sys.exit(SKIPPED)

PROGRAM = "build/volley"
HELLO = [{"role": "user", "content": "Write two sentences about a river."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer",
                           "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "good": {"type": "boolean"}},
    "required": ["name", "good"],
    "additionalProperties": False,
}


class OpenAiClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.context = server(PROGRAM, "--api-key", "one", "--api-key", "two",
                             "--served-model-name", "demo", "--max-num-seqs", "8")
        cls.url = cls.context.__enter__()
        cls.client = openai.OpenAI(base_url=cls.url + "/v1", api_key="two", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.context.__exit__(None, None, None)

    def chat(self, **options):
        options = {"model": "demo", "messages": HELLO, "max_tokens": 32, "temperature": 0, **options}
        return self.client.chat.completions.create(**options)

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["demo"])
        self.assertEqual(self.client.models.retrieve("demo").owned_by, "volley")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("other")

    def test_keys(self):
        for key in ("", "three", "on"):
            with self.assertRaises(openai.AuthenticationError):
                openai.OpenAI(base_url=self.url + "/v1", api_key=key or "x").models.list()

    def test_completions(self):
        def ask(**options):
            return self.client.completions.create(
                model="demo", prompt="Once upon a time", max_tokens=24, temperature=0, **options)

        whole = ask()
        self.assertEqual(whole.object, "text_completion")
        self.assertEqual(whole.usage.completion_tokens, 24)
        self.assertEqual("".join(chunk.choices[0].text for chunk in ask(stream=True)),
                         whole.choices[0].text)
        self.assertEqual(ask(echo=True).choices[0].text, "Once upon a time" + whole.choices[0].text)
        logprobs = ask(logprobs=3).choices[0].logprobs
        self.assertEqual(len(logprobs.tokens), 24)
        self.assertTrue(all(value <= 0 for value in logprobs.token_logprobs))
        self.assertTrue(all(len(top) == 3 for top in logprobs.top_logprobs))

    def test_prompts_as_lists_and_ids(self):
        both = self.client.completions.create(
            model="demo", prompt=["A dog", "A cat"], max_tokens=8, temperature=0)
        self.assertEqual([choice.index for choice in both.choices], [0, 1])
        ids = self.client.completions.create(
            model="demo", prompt=[5, 6, 7], max_tokens=4, temperature=0)
        self.assertEqual(ids.usage.prompt_tokens, 3)

    def test_chat(self):
        whole = self.chat()
        self.assertEqual(whole.object, "chat.completion")
        self.assertEqual(whole.choices[0].message.role, "assistant")
        self.assertIn(whole.choices[0].finish_reason, ("stop", "length"))
        text, usage = "", None
        for chunk in self.chat(stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(usage.prompt_tokens, whole.usage.prompt_tokens)

    def test_max_completion_tokens(self):
        short = self.chat(max_tokens=openai.omit, max_completion_tokens=3)
        self.assertEqual(short.usage.completion_tokens, 3)
        self.assertEqual(short.choices[0].finish_reason, "length")

    def test_seed_and_n(self):
        def texts(**options):
            answer = self.chat(temperature=1.0, **options)
            return [choice.message.content for choice in answer.choices]

        three = texts(seed=11, n=3)
        self.assertEqual(len(three), 3)
        self.assertEqual(three, texts(seed=11, n=3))
        self.assertEqual(three[0], texts(seed=11)[0])
        self.assertNotEqual(three, texts(seed=12, n=3))
        parts = {}
        for chunk in self.chat(temperature=1.0, seed=11, n=3, stream=True):
            for choice in chunk.choices:
                parts[choice.index] = parts.get(choice.index, "") + (choice.delta.content or "")
        self.assertEqual([parts[i] for i in range(3)], three)

    def test_stop(self):
        whole = self.chat(max_tokens=60).choices[0].message.content
        stop = whole[10:14]
        for stream in (False, True):
            answer = self.chat(max_tokens=60, stop=[stop, "\x00never"], stream=stream)
            if stream:
                text, reason = "", None
                for chunk in answer:
                    text += chunk.choices[0].delta.content or ""
                    reason = chunk.choices[0].finish_reason or reason
            else:
                text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
            self.assertEqual(text, whole[:whole.index(stop)])
            self.assertEqual(reason, "stop")

    def test_logprobs(self):
        content = self.chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 2)
            self.assertEqual(token.top_logprobs[0].token, token.token)  # greedy
        streamed = []
        for chunk in self.chat(logprobs=True, top_logprobs=2, stream=True):
            if chunk.choices[0].logprobs:
                streamed += chunk.choices[0].logprobs.content
        self.assertEqual([t.token for t in streamed], [t.token for t in content])
        self.assertEqual([t.logprob for t in streamed], [t.logprob for t in content])

    def test_penalties_and_bias(self):
        plain = self.chat().choices[0].message.content
        first = self.chat(logprobs=True).choices[0].logprobs.content[0]
        ids = self.client.post("../tokenize", cast_to=object,
                               body={"content": first.token})["tokens"]
        banned = self.chat(logit_bias={str(ids[0]): -100}).choices[0].message.content
        self.assertNotEqual(banned, plain)
        self.chat(presence_penalty=1.5, frequency_penalty=0.5)
        self.chat(extra_body={"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1},
                  temperature=0.8, top_p=0.9)

    def test_drafting_changes_nothing(self):
        for options in ({}, {"temperature": 0.9, "seed": 3}):
            plain = self.chat(extra_body={"num_speculative_tokens": 0}, max_tokens=80, **options)
            for drafts in (3, 15, "auto"):
                drafted = self.chat(max_tokens=80, extra_body={
                    "num_speculative_tokens": drafts, "spec_decode_metrics": "detailed"}, **options)
                self.assertEqual(drafted.choices[0].message.content,
                                 plain.choices[0].message.content)
                spec = drafted.metrics["speculative_decoding"]
                self.assertGreaterEqual(spec["acceptance_length"], 1)
                self.assertEqual(len(spec["drafted_per_position"]),
                                 len(spec["accepted_per_position"]))
                if drafts != "auto":
                    self.assertEqual(spec["num_spec_steps"], sum(spec["acceptance_histogram"]))

    def test_json(self):
        for options in ({}, {"temperature": 1.0, "seed": 5}):
            schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
            texts = set()
            for drafts in (0, 15):
                answer = self.chat(response_format=schema, max_tokens=200,
                                   extra_body={"num_speculative_tokens": drafts}, **options)
                texts.add(answer.choices[0].message.content)
            self.assertEqual(len(texts), 1)
            value = json.loads(texts.pop())
            self.assertIsInstance(value["good"], bool)
            self.assertLessEqual(len(value["name"]), 12)
        answer = self.chat(response_format={"type": "json_object"}, max_tokens=300)
        if answer.choices[0].finish_reason == "stop":
            self.assertIsInstance(json.loads(answer.choices[0].message.content), dict)

    def test_tools(self):
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            whole = self.chat(tools=[WEATHER], tool_choice=choice, max_tokens=200,
                              parallel_tool_calls=False)
            call = whole.choices[0].message.tool_calls[0]
            self.assertEqual(call.function.name, "weather")
            self.assertIn(json.loads(call.function.arguments)["city"], ("Paris", "Oslo"))
            self.assertEqual(whole.choices[0].finish_reason, "tool_calls")
            name, arguments = "", ""
            for chunk in self.chat(tools=[WEATHER], tool_choice=choice, max_tokens=200,
                                   parallel_tool_calls=False, stream=True):
                for part in chunk.choices[0].delta.tool_calls or []:
                    name += part.function.name or ""
                    arguments += part.function.arguments or ""
            self.assertEqual((name, arguments), (call.function.name, call.function.arguments))
        for choice in ("none", "auto"):
            self.chat(tools=[WEATHER], tool_choice=choice)
        follow_up = HELLO + [
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c", "type": "function",
                 "function": {"name": "weather", "arguments": '{"city": "Oslo", "days": 1}'}}]},
            {"role": "tool", "tool_call_id": "c", "content": "snow"}]
        self.chat(messages=follow_up, tools=[WEATHER])

    def test_responses(self):
        def ask(**options):
            return self.client.responses.create(model="demo", input="Tell me about a river.",
                                                max_output_tokens=24, temperature=0, **options)

        whole = ask(instructions="Be brief.")
        self.assertEqual(whole.object, "response")
        self.assertIn(whole.status, ("completed", "incomplete"))
        text, kinds = "", []
        for event in ask(instructions="Be brief.", stream=True):
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
        self.assertEqual(text, whole.output_text)
        self.assertEqual(kinds[0], "response.created")
        self.assertIn(kinds[-1], ("response.completed", "response.incomplete"))
        formatted = ask(text={"format": {"type": "json_schema", "name": "n", "schema": {
            "type": "object", "properties": {"good": {"type": "boolean"}}, "required": ["good"],
            "additionalProperties": False}}})
        self.assertIsInstance(json.loads(formatted.output_text)["good"], bool)
        tool = {"type": "function", **WEATHER["function"]}
        called = self.client.responses.create(model="demo", input="Weather?", tools=[tool],
                                              tool_choice="required", max_output_tokens=200)
        call = [item for item in called.output if item.type == "function_call"][0]
        self.assertEqual(call.name, "weather")

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError):
            self.chat(model="gpt-9")
        for options in ({"n": 1000}, {"temperature": -1}, {"max_tokens": 0}, {"stop": [""]},
                        {"messages": []}, {"logit_bias": {"x": 1}}, {"top_logprobs": 3}):
            with self.assertRaises(openai.BadRequestError) as caught:
                self.chat(**options)
            self.assertEqual(caught.exception.type, "invalid_request_error")
        with self.assertRaises(openai.BadRequestError):
            self.client.completions.create(model="demo", prompt="word " * 20000)

    def test_leaving_a_stream(self):
        for _ in range(5):
            stream = self.chat(max_tokens=400, stream=True)
            next(iter(stream))
            stream.close()


def main():
    global PROGRAM
    if len(sys.argv) > 1:
        PROGRAM = sys.argv.pop(1)
    unittest.main()


if __name__ == "__main__":
    main()
