// The same chat for programs, with the address of this gate. The key stays a variable.

/**
 * @param {Me["gate"]} gate @param {string} model @param {string} prompt
 * @returns {Record<string, {code: string, note: string}>}
 */
export function snippets({ scheme, port }, model, prompt) {
  const host = location.hostname.includes(":") ? `[${location.hostname.replace(/[[\]]/g, "")}]` : location.hostname;
  const url = `${scheme}://${host}:${port}`;
  const body = JSON.stringify({ model, messages: [{ role: "user", content: prompt }] });
  const text = JSON.stringify(prompt), name = JSON.stringify(model), address = JSON.stringify(url);
  const messages = `messages = [{"role": "user", "content": ${text}}]\n`, openai = JSON.stringify(`${url}/v1`);
  const shell = (/** @type {string} */ value) => `'${value.replaceAll("'", "'\\''")}'`;
  return {
    curl: { note: "Set OLLAMA_API_KEY to your key first.", code: `curl -N ${url}/api/chat -H "Authorization: Bearer $OLLAMA_API_KEY" \\\n  -d ${shell(body)}\n` },
    Python: { note: "pip install ollama. It reads OLLAMA_API_KEY itself.", code: `import ollama\n\nclient = ollama.Client(${address})\nfor part in client.chat(${name}, [{"role": "user", "content": ${text}}], stream=True):\n    print(part.message.content, end="", flush=True)\n` },
    JavaScript: { note: "npm install ollama", code: `import { Ollama } from "ollama";\n\nconst ollama = new Ollama({\n  host: ${address},\n  headers: { Authorization: \`Bearer \${process.env.OLLAMA_API_KEY}\` },\n});\nconst messages = [{ role: "user", content: ${text} }];\nfor await (const part of await ollama.chat({ model: ${name}, messages, stream: true }))\n  process.stdout.write(part.message.content);\n` },
    OpenAI: { note: "pip install openai", code: `import os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=${openai}, api_key=os.environ["OLLAMA_API_KEY"])\n${messages}for chunk in client.chat.completions.create(model=${name}, messages=messages, stream=True):\n    print(chunk.choices[0].delta.content or "", end="", flush=True)\n` },
    Anthropic: { note: "pip install anthropic", code: `import os\nfrom anthropic import Anthropic\n\nclient = Anthropic(base_url=${address}, api_key=os.environ["OLLAMA_API_KEY"])\n${messages}with client.messages.stream(model=${name}, max_tokens=1024, messages=messages) as stream:\n    for piece in stream.text_stream:\n        print(piece, end="", flush=True)\n` },
    "Claude Code": { note: "The model needs tools and a context of 32k tokens or more.", code: `export ANTHROPIC_BASE_URL=${url}\nexport ANTHROPIC_AUTH_TOKEN="$OLLAMA_API_KEY"\nclaude --model ${shell(model)} ${shell(prompt)}\n` },
    Codex: { note: "Into ~/.codex/config.toml; then: codex", code: `model = ${name}\nmodel_provider = "gate"\n\n[model_providers.gate]\nname = "Ollama behind the gate"\nbase_url = ${openai}\nenv_key = "OLLAMA_API_KEY"\nwire_api = "responses"\n` },
    "Open WebUI": { note: "Or in its settings: Connections, Ollama API, with the key as Bearer.", code: `docker run -p 3000:8080 -v open-webui:/app/backend/data \\\n  -e ENABLE_OLLAMA_API=false \\\n  -e OPENAI_API_BASE_URL=${url}/v1 -e OPENAI_API_KEY="$OLLAMA_API_KEY" \\\n  ghcr.io/open-webui/open-webui:main\n` },
  };
}
