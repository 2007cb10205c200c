"""Guards for the classifier that somebody already has: a file, a folder, or a served model.

    options     what its owner says about it (`--preset`, `--mean`, `--output`, ...)
    onnx_graph  an ONNX file: inputs, outputs, and the graph as it goes into a bundle
    torch_model timm, Hugging Face and factories: a module, exported to such a graph
    served      a model behind gRPC or REST
    describe    options and hints of the source together: what clients send, what it answers
    check       whether it is fed rightly, by what it says about images
    taps        features inside the graph, for detectors
    lifting     the gate between the graph and its lift to torch
    images      photographs of the kind that the classifier will see
    plan        all of it together, before anything is made

`firewall.train.guard_source` makes the guard.
"""
