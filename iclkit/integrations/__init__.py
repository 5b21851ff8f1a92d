"""Selectors inside the tools that people use: one module per tool, each with an extra of its own.

    from iclkit.integrations.langchain import ExampleSelector       pip install 'iclkit[langchain]'
    from iclkit.integrations.sklearn import ICLClassifier           nothing more
    from iclkit.integrations.dspy import SelectorFewShot            pip install 'iclkit[dspy]'
    from iclkit.integrations.lm_eval import SelectorTask            pip install 'iclkit[lm-eval]'
    from iclkit.integrations.inspect_ai import show_demonstrations  pip install 'iclkit[inspect]'
    from iclkit.integrations.hub import load_selector, push         nothing more
    from iclkit.integrations.tracking import export_runs            pip install 'iclkit[mlflow]', [wandb] or [trackio]

A tool's library is loaded when its module is, and never before; a tracker's when something is exported to it. Those
that choose take the same selector, or the folder of a saved one, and show the same demonstrations for the same query.
"""
