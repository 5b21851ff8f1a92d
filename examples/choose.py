"""A pool, two selectors side by side, and what each shows for a query."""

from iclkit import Kit, Pool, Query, load_embedder, load_task, make_selector

task = load_task("support")  # 600 messages with their intents, and 204 test messages
pool = Pool.of(task.train[:200])  # in memory; Pool.open("my.db") keeps it in a file
kit = Kit(embedder=load_embedder("all-minilm-l6-v2"), seed=0)
query = Query("my parcel is late and nobody answers")

for name in ("bm25", "mmr,trade_off=0.7"):
    selector = make_selector(name).fit(pool.view(), kit)
    print(name)
    for pick in selector.select(query, k=3):
        example = pool.get(pick.example_id)
        print(f"  {pick.rank}  {pick.score:6.3f}  {example.output:<15} {example.text}")
