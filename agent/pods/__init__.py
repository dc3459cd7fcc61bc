"""Pods: from a spec and what the runtime holds to actions and a status. `PodManager` is the way in.

manager, worker             which pods there are; one serial worker for each
plan, plan_stop, restart    decisions: frozen data in, a list of actions out (pure)
executor, start, hooks      carry the actions out
translate, security, env, naming    a spec in the runtime's words (pure)
runtime, convert, observer  the CRI client, and what it says is there
status*                     facts to the status the API shows, and writing it
static, mirror              manifests in a directory, and their pictures in the API
ports                       what all this needs from other components, as protocols
"""
