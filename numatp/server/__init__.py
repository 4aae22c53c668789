"""A model behind HTTP: OpenAI's, Anthropic's and llama-server's interfaces, and a page."""
