"""The benchmark: chatrelay beside other servers that do the same job on the same wire.

`python -m bench` starts one server after another on a core of its own, loads
it from another core, and reads off what a relayed message cost the server in
CPU time. `docs/benchmarks.rst` says what is measured and why; the modules:

- `bench.scenarios`: what is measured, as data;
- `bench.servers`: chatrelay and its peers: found, prepared, started, stopped;
- `bench.peers`: the peers' programs;
- `bench.load`: the load generator, a process of its own (`bench.mqtt` is its part for Mosquitto);
- `bench.webserver`: the site that chatrelay asks whose session it is;
- `bench.measure`: one server under one load, and rounds of that;
- `bench.proc`: what Linux tells of processes and of the machine;
- `bench.report` and `bench.plots`: tables, JSON, plots;
- `bench.message_log`: a benchmark of its own, of ways to write the message log;
- `bench.instructions`: the instructions of a message and of a login, as Valgrind counts them;
- `bench.calls`: the calls of a message and of a login, their changes of module, and the lines of each module.
"""
