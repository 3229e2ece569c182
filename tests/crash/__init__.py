"""The daemon killed, or refused an operation, at every point where that can matter.

Owns: the proof that nothing is lost, leaked or given twice.  Must not know: overlayd's own idea of its state; it reads
the kernel through `wg`, `nft` and a reader of its own, the disk through another, and reckons with its own model.

`python -m crash` (make crash) runs everything; the tests here run a sample of it.  Needs root.

    cell       a throw-away machine: namespaces with the real daemon in them, which can be killed, rebooted, watched
    network    links, addresses, routes and neighbours of a namespace, as `ip` shows them
    view       all that such a machine shows, in a form that can be compared
    scenarios  requests under test, each with what happened before it
    trial      one scenario, disturbed at one point, and what must be true afterwards
    model      the reference: what the requests so far must have led to, in dictionaries; also model_peers, model_state
    shown      what a machine in such a state shows
    together   several requests at once: what may have come of them
    sequences  random requests, alone and together, deaths and reboots against the model
    shim       what a container runtime calls, which tries again when the daemon dies of it
    planted    deliberate bugs, which the harness must find
    worker     a process that runs trials, each in a cell of its own
"""
