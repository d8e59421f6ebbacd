"""Checks while a loop is recorded: each datum has its own gradient, and datums do not interact.

``split_guard`` watches the loop and decides when to check. ``split_check`` compares a datum's
captured gradient with a pass of this datum alone (``model_calls``). ``loss_check`` runs the loss
again, whose operations ``loss_log`` has noted, with the outputs of other datums changed.
"""
