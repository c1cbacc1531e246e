"""LLM backends behind one call: an OpenAI chat-completions request in, an assistant message out."""
