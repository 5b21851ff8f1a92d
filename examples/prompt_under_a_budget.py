"""A prompt of whole demonstrations within a number of tokens, as messages for a chat API. No LM is loaded."""

from iclkit import Kit, Pool, Query, Template, assemble, load_task, make_selector

task = load_task("support")
pool = Pool.of(task.train[:200])
bm25 = make_selector("bm25").fit(pool.view(), Kit())
picked = bm25.select(Query("where is my order"), k=8)
template = Template("Message: {input}\nIntent: {output}", instruction="Say what the customer wants.", chat=True)


def count_words(text: str) -> int:
    """Stands for a tokenizer; an LM brings its own (``lm.count_tokens``)."""
    return len(text.split())


demonstrations = [pool.get(pick.example_id) for pick in picked]
prompt = assemble(template, Query("where is my order"), demonstrations, count_tokens=count_words, budget=90)
print(f"{len(prompt.shown)} of {len(picked)} demonstrations fit; left out: {[d.reason for d in prompt.dropped]}")
for message in prompt.messages:
    print(f"{message.role}: {message.content}")
