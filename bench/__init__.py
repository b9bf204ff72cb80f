"""The benchmark: chatrelay and other servers that do the same job with the same protocol.

`python -m bench` starts one server after another on one core, loads it from another core, and measures the CPU time
that the server uses for a relayed message. `docs/benchmarks.rst` explains what is measured and why. The modules:

- `bench.scenarios`: the loads and the servers, as data;
- `bench.servers`: how chatrelay and its peers are found, prepared, started and stopped;
- `bench.peers`: the peers' programs;
- `bench.load`: the load generator, a separate process (`bench.mqtt` is its part for Mosquitto);
- `bench.webserver`: the site with the session page;
- `bench.measure`: one server under one load, and rounds of that;
- `bench.proc`: data of Linux about processes and the machine;
- `bench.report` and `bench.plots`: tables, JSON, plots;
- `bench.message_log`: a separate benchmark of ways to write the message log;
- `bench.instructions`: the instructions of a message and of a login, as Valgrind counts them;
- `bench.jitter`: what arrives while connections are cut and the server is killed, compared with Socket.IO;
- `bench.calls`: the calls of a message and of a login, their changes of module, and the lines of each module.
"""
