"""A relay of TCP connections that a test can delay, stall and cut. Needs no rights.

    with relay.Relay(("127.0.0.1", 4711)) as r:          # r.address: ("127.0.0.1", PORT), to be given to the dialer
        r.delay(0.05)                                    # every byte takes 50 ms longer, each way
        r.stall()                                        # bytes wait, connections stay, new ones are not answered
        r.stall("up")                                    # only those from the dialer to the target ("down": back)
        r.flow()                                         # on they go, in order
        r.cut()                                          # connections are reset; new ones are refused with a reset
        r.restore()
        r.bytes_up, r.bytes_down                         # that were passed on

`source`: the address to listen on. `space`: a callable that puts a thread into another network first (Host.setns of
tests/hosts/network.py), in which the relay then lives. One thread; a few hundred MB/s.
"""
import collections
import selectors
import socket
import struct
import threading
import time

CHUNK = 256 << 10
# Bytes of a direction that wait in the relay before it reads no more.
MOST_WAITING = 8 << 20
NEVER = float("inf")


class _Way:
    """One direction of one connection."""

    def __init__(self, name, source, target):
        self.name, self.source, self.target = name, source, target
        self.waiting = collections.deque()  # [due, bytes]; b"": the end
        self.bytes = 0
        self.ended = False


class Relay:

    def __init__(self, target, source=("127.0.0.1", 0), space=None):
        self.target, self.space = target, space
        self.lock = threading.Condition()
        self.changes = self.applied = 0
        self.seconds = 0.0
        self.stalled = set()
        self.is_cut = False
        self.bytes_up = self.bytes_down = 0
        self.ways = []  # of the thread
        self.stopping = False
        self.wake_in, self.wake_out = socket.socketpair()
        self.started = threading.Event()
        self.failure = None
        self.source = source
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        self.started.wait()
        if self.failure is not None:
            raise self.failure
        return self

    def __exit__(self, *_):
        self._change(stopping=True)
        self.thread.join()
        self.wake_in.close()
        self.wake_out.close()

    def _change(self, **values):
        with self.lock:
            for name, value in values.items():
                setattr(self, name, value)
            self.changes += 1
            mine = self.changes
            self.wake_out.send(b"x")
            # The thread has seen it: what comes from now on is treated so.
            self.lock.wait_for(lambda: self.applied >= mine or not self.thread.is_alive())

    def delay(self, seconds):
        self._change(seconds=float(seconds))

    def stall(self, direction="both"):
        self._change(stalled={"up", "down"} if direction == "both" else {direction})

    def flow(self):
        self._change(stalled=set())

    def cut(self):
        self._change(is_cut=True)

    def restore(self):
        self._change(is_cut=False)

    # All below runs in the thread.

    def _run(self):
        try:
            if self.space is not None:
                self.space()
            self.listener = socket.socket(socket.AF_INET6 if ":" in self.source[0] else socket.AF_INET)
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind(self.source)
            self.listener.listen(64)
            self.listener.setblocking(False)
            self.wake_in.setblocking(False)
            self.address = self.listener.getsockname()[:2]
        except OSError as error:
            self.failure = error
            return
        finally:
            self.started.set()
        while self._turn():
            pass
        for way in list(self.ways):
            self._reset(way)
        self.listener.close()

    def _turn(self):
        with self.lock:
            stalled, seconds, is_cut, stopping = set(self.stalled), self.seconds, self.is_cut, self.stopping
            self.applied = self.changes
            self.lock.notify_all()
        if stopping:
            return False
        if is_cut:
            for way in list(self.ways):
                self._reset(way)
        now = time.monotonic()
        next_due = NEVER
        selector = selectors.DefaultSelector()
        wanted = collections.defaultdict(int)
        wanted[self.wake_in] |= selectors.EVENT_READ
        if not stalled:
            wanted[self.listener] |= selectors.EVENT_READ
        for way in self.ways:
            if not way.ended and way.bytes < MOST_WAITING:
                wanted[way.source] |= selectors.EVENT_READ
            if way.waiting and way.name not in stalled:
                if way.waiting[0][0] <= now:
                    wanted[way.target] |= selectors.EVENT_WRITE
                else:
                    next_due = min(next_due, way.waiting[0][0])
        for end, events in wanted.items():
            selector.register(end, events)
        ready = {key.fileobj: events for key, events in selector.select(None if next_due == NEVER else next_due - now)}
        selector.close()
        if self.wake_in in ready:
            self.wake_in.recv(4096)
        if self.listener in ready:
            self._accept(is_cut)
        for way in list(self.ways):
            if way not in self.ways:
                continue
            try:
                if ready.get(way.source, 0) & selectors.EVENT_READ and not way.ended and way.bytes < MOST_WAITING:
                    self._read(way, seconds)
                if ready.get(way.target, 0) & selectors.EVENT_WRITE and way.name not in stalled:
                    self._write(way)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self._reset(way)
        return True

    def _accept(self, is_cut):
        try:
            near = self.listener.accept()[0]
        except OSError:
            return
        try:
            if is_cut:
                raise ConnectionRefusedError()
            far = socket.create_connection(self.target, timeout=5)
        except OSError:
            self._close(near)
            return
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ways += [_Way("up", near, far), _Way("down", far, near)]

    def _read(self, way, seconds):
        data = way.source.recv(CHUNK)
        way.ended = not data
        way.bytes += len(data)
        way.waiting.append([time.monotonic() + seconds, data])

    def _write(self, way):
        while way.waiting and way.waiting[0][0] <= time.monotonic():
            data = way.waiting[0][1]
            if not data:
                way.waiting.popleft()
                way.target.shutdown(socket.SHUT_WR)
                self._forget_if_done(way)
                return
            n = way.target.send(data)
            way.bytes -= n
            if way.name == "up":
                self.bytes_up += n
            else:
                self.bytes_down += n
            if n < len(data):
                way.waiting[0][1] = data[n:]
                return
            way.waiting.popleft()

    def _other(self, way):
        return next(w for w in self.ways if w.source is way.target)

    def _forget_if_done(self, way):
        other = self._other(way)
        if way.ended and other.ended and not way.waiting and not other.waiting:
            self.ways = [w for w in self.ways if w is not way and w is not other]
            way.source.close()
            way.target.close()

    def _close(self, end):
        """With a reset."""
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.close()

    def _reset(self, way):
        if way not in self.ways:
            return
        other = self._other(way)
        self.ways = [w for w in self.ways if w is not way and w is not other]
        self._close(way.source)
        self._close(way.target)
