// node streams.mjs URL KEY: print as JSON, for each client, the parts of a chat that it streamed, or what it shows.
import Anthropic from "@anthropic-ai/sdk";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ChatOllama } from "@langchain/ollama";
import { streamText } from "ai";
import { Ollama } from "ollama";
import OpenAI from "openai";

const [url, apiKey] = process.argv.slice(2);
const model = "demo";
const messages = [{ role: "user", content: "Hello!" }];
const headers = { Authorization: `Bearer ${apiKey}` };

const clients = {
  async ollama(add) {
    const chat = await new Ollama({ host: url, headers }).chat({ model, messages, stream: true });
    for await (const part of chat) add(part.message.content);
  },
  async "ollama with the key in the address"(add) {
    const chat = await new Ollama({ host: url.replace("//", `//me:${apiKey}@`) }).chat({ model, messages, stream: true });
    for await (const part of chat) add(part.message.content);
  },
  async openai(add) {
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey });
    for await (const part of await client.chat.completions.create({ model, messages, stream: true }))
      add(part.choices[0]?.delta?.content);
  },
  async "openai, responses"(add) {
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey });
    for await (const event of await client.responses.create({ model, input: "Hello!", stream: true }))
      add(event.type === "response.output_text.delta" ? event.delta : "");
  },
  async anthropic(add) {
    const client = new Anthropic({ baseURL: url, authToken: apiKey, apiKey: null });
    const stream = client.messages.stream({ model, messages, max_tokens: 100 }).on("text", add);
    await stream.finalMessage();
  },
  async "AI SDK"(add) {
    const gate = createOpenAICompatible({ name: "gate", baseURL: `${url}/v1`, apiKey });
    let failure;
    const { textStream } = streamText({ model: gate(model), prompt: "Hello!", onError: ({ error }) => { failure = error; } });
    for await (const part of textStream) add(part);
    if (failure) throw failure;
  },
  async "LangChain.js"(add) {
    const chat = new ChatOllama({ model, baseUrl: url, headers });
    for await (const part of await chat.stream("Hello!")) add(part.content);
  },
};

const results = await Promise.all(Object.entries(clients).map(async ([name, run]) => {
  const parts = [];
  try {
    await run((part) => part && parts.push(part));
    return [name, { parts }];
  } catch (error) {
    return [name, { parts, shows: `${error.constructor.name}: ${error.message}` }];
  }
}));
console.log(JSON.stringify(Object.fromEntries(results)));
