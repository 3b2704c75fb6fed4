"""Calls from process to process over one connection, without Ray: what a hop between two nodes costs is decided here.

    frames      what goes over the wire: a fixed header, kinds, texts, limits            pure
    reader      bytes as they come, cut into frames                                      pure
    values      Python values as a pickle with buffers beside it                         pure
    metadata    the head of a call; names that repeat are sent once per connection       pure
    handshake   who is at the other end, before anything is unpickled                    pure
    choice      which channel takes a call, how long to wait before another try          pure
    borrowing   shared memory of other processes: mapped, and known again
    segments    shared memory for large buffers: lent, and passed on
    lending     what both ends agree on about it
    connection  an asyncio protocol: writes of one loop tick together, flow control
    accepted    one connection as a replica has it: lets the peer in, runs its calls
    server      `ChannelServer`, which listens and has all of them
    opening     one connection as a caller has it, until it is let in
    client      `Channel`, the same afterwards
    pool        `ChannelPool`, the channels to all replicas of an application

A channel is an optimisation: whoever uses one has another way to make the call, and is told by `ChannelLostError.sent`
and `CallRejectedError` when that is safe. Everything here lives on one event loop and is not thread-safe.
"""
