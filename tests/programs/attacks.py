# Runs the attempts of attacks.yaml, one after the other, each in a process of its own, as the test tells it to. What it
# prints of an attempt is what the attempt itself saw; whether anything got out is for the witness on the wire.
#
#   attacks.py SPECIFICATION
#
# An attempt is up to three pieces of Python, the bodies of functions, that share `it` for what they keep:
#   early    before there is any enforcement, outside the enforced cgroup
#   before   during it, still outside
#   run      in the cgroup of the workload `a`, with the capabilities of an ordinary container (or in that of `exec`, with
#            what that leaves). Its value is what was seen; an OSError is seen as its name (EPERM), a time limit as `timeout`
import ctypes, errno, fcntl, json, mmap, os, select, signal, socket, struct, subprocess, sys, time, types

GOOD4, GOOD6 = "198.51.100.10", "2001:db8:1::10"
EVIL4, EVIL6 = "198.51.100.66", "2001:db8:1::66"
MAPPED = "::ffff:" + EVIL4
OWN4, OWN6 = "192.0.2.2", "2001:db8:0:2::2"
# Different ones for each attempt: refusals that are alike are counted and told together, ten seconds later.
AWAY4, AWAY6, PORT = None, None, None
# The server of the workload's own resolv.conf, which the agent does not trust.
FOREIGN = "198.51.100.54"
# What every attempt tries to get out. The witness looks for it in each packet.
EVIL = b"evil"
TCP, UDP, RAW = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW
V4, V6, PACKET = socket.AF_INET, socket.AF_INET6, socket.AF_PACKET

it = types.SimpleNamespace()
libc = ctypes.CDLL(None, use_errno=True)


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# --- sockets

def family_of(address):
    return V6 if ":" in address else V4


def sock(kind, family=V4, protocol=0):
    return socket.socket(family, kind, protocol)


def connected(address, port, kind=TCP):
    s = sock(kind, family_of(address))
    s.connect((address, port))
    return s


def dissolve(s):
    checked(libc.connect(s.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16))


def tcp(address, port, data=EVIL):
    return talk(connected(address, port), data)


def udp(address, port, data=EVIL):
    sock(UDP, family_of(address)).sendto(data, (address, port))
    return "sent"


def told(answer):
    """The first bytes of an answer in a word or two."""
    if not answer:
        return "closed"
    if answer.startswith(b"HTTP/"):
        return answer.split()[1].decode()
    if answer[0] == 21 and len(answer) >= 7:
        return f"alert {answer[6]}"
    if answer[0] == 22:
        return "handshake"
    return "answered"


def talk(s, data):
    s.sendall(data)
    return told(s.recv(65536))


def address_bytes(address, port):
    if ":" in address:
        return struct.pack("=HHI16sI", V6, socket.htons(port), 0, socket.inet_pton(V6, address), 0)
    return struct.pack("=HH4s8x", V4, socket.htons(port), socket.inet_aton(address))


class Message:
    """A struct msghdr, for the calls that Python does not have."""

    def __init__(self, address, port, data=EVIL):
        self.name = ctypes.create_string_buffer(address_bytes(address, port))
        self.data = ctypes.create_string_buffer(data, len(data))
        self.vector = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(self.data), len(data)))
        header = struct.pack("PI4xPNPNi4x", ctypes.addressof(self.name), len(self.name) - 1,
                             ctypes.addressof(self.vector), 1, 0, 0, 0)
        # A struct mmsghdr has the count of bytes sent behind it.
        self.header = ctypes.create_string_buffer(header + bytes(8))

    def at(self):
        return ctypes.addressof(self.header)


def io_uring(opcode, s, address, length, offset=0):
    """One entry, submitted and waited for."""
    params = ctypes.create_string_buffer(120)
    ring = checked(libc.syscall(425, 2, params))
    submissions, completions = struct.unpack_from("II", params.raw)
    tail, array = struct.unpack_from("4xI16xI", params.raw, 40)
    cqes, = struct.unpack_from("20xI", params.raw, 80)
    submit = mmap.mmap(ring, array + 4 * submissions)
    done = mmap.mmap(ring, cqes + 16 * completions, offset=0x8000000)
    entries = mmap.mmap(ring, 64 * submissions, offset=0x10000000)
    entries[:32] = struct.pack("BBHiQQII", opcode, 0, 0, s.fileno(), offset, address, length, 0)
    submit[array:array + 4] = struct.pack("I", 0)
    submit[tail:tail + 4] = struct.pack("I", struct.unpack("I", submit[tail:tail + 4])[0] + 1)
    checked(libc.syscall(426, ring, 1, 1, 1, None, 0))
    result, = struct.unpack("i", done[cqes + 8:cqes + 12])
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


# --- packets made by hand

def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xffff)
    return ~total & 0xffff


def ipv4(source, destination, protocol, payload):
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(destination))
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def ipv6(source, destination, following, payload):
    return struct.pack(">IHBB16s16s", 6 << 28, len(payload), following, 64,
                       socket.inet_pton(V6, source), socket.inet_pton(V6, destination)) + payload


def udp_datagram(source_port, port, data=EVIL):
    # A checksum of zero is none, which IPv4 allows.
    return struct.pack(">HHHH", source_port, port, 8 + len(data), 0) + data


def syn(source, destination, source_port, port):
    head = struct.pack(">HHIIBBHHH", source_port, port, 1, 0, 0x50, 2, 65535, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack(">BBH", 0, 6, len(head))
    return head[:16] + struct.pack(">H", checksum(pseudo + head)) + head[18:]


def echo_request(v6=False):
    # The kernel fills the checksum of ping sockets and of raw ICMPv6 in.
    head = struct.pack(">BBHHH", 128 if v6 else 8, 0, 0, 1, 1)
    return head + EVIL if v6 else head[:2] + struct.pack(">H", checksum(head + EVIL)) + head[4:] + EVIL


def source_route(*hops):
    route = b"".join(socket.inet_aton(hop) for hop in hops)
    return bytes([131, 3 + len(route), 4]) + route + b"\1"


def segment_route(*segments):
    last = len(segments) - 1
    return (bytes([0, 2 * len(segments), 4, last, last, 0, 0, 0])
            + b"".join(socket.inet_pton(V6, segment) for segment in segments))


def hardware(interface):
    # Not from /sys, which may be of another network namespace. SIOCGIFHWADDR.
    request = fcntl.ioctl(sock(UDP), 0x8927, struct.pack("16s24x", interface.encode()))
    return request[18:24]


def gateway():
    """The link address of the way out, asked for by something harmless if the kernel does not know it yet."""
    for _ in range(100):
        with open("/proc/net/arp") as file:
            for line in file:
                words = line.split()
                if words[0] == "192.0.2.1" and words[2] != "0x0":
                    return bytes.fromhex(words[3].replace(":", ""))
        sock(UDP).sendto(b"", ("192.0.2.1", 9))
        time.sleep(0.02)
    raise TimeoutError


def frame(payload, kind=0x0800):
    return it.gateway + hardware("eth0") + struct.pack(">H", kind) + payload


# --- TLS

def vector(data, width=2):
    return len(data).to_bytes(width, "big") + data


def extension(number, data):
    return struct.pack(">H", number) + vector(data)


def hello(*names, record=16384, extensions=b"", kind=0):
    """A ClientHello that asks for these names."""
    listed = b"".join(bytes([kind]) + vector(name if isinstance(name, bytes) else name.encode()) for name in names)
    more = (extension(0, vector(listed)) if names else b"") + extensions
    more += extension(10, vector(struct.pack(">HH", 29, 23))) + extension(43, vector(b"\3\4", 1))
    more += extension(13, vector(struct.pack(">HHHH", 0x0403, 0x0804, 0x0807, 0x0401))) + extension(51, vector(b""))
    body = (b"\3\3" + os.urandom(32) + vector(os.urandom(32), 1) + vector(struct.pack(">HHH", 0x1301, 0x1302, 0x1303))
            + b"\1\0" + vector(more))
    message = b"\1" + vector(body, 3)
    return b"".join(b"\x16\3\1" + vector(message[at:at + record]) for at in range(0, len(message), record))


# --- HTTP

def request(host, target="/", method="GET", more=""):
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def answer(s):
    """One answer with its body, as its status."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = s.recv(65536)
        if not part:
            return told(data)
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
    while len(body) < length:
        part = s.recv(65536)
        if not part:
            break
        body += part
    return told(head)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def h2_frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def h2_request(stream, host):
    # :method GET, :scheme http, :path /, and :authority as a literal.
    block = b"\x82\x86\x84\x01" + vector(host.encode(), 1)
    return h2_frame(1, 5, stream, block)


def h2_status(s, stream):
    """The status of a stream: 200 stands in HPACK's static table, 403 as a literal, coded by Huffman or not."""
    data = b""
    while True:
        while len(data) < 9 or len(data) < 9 + int.from_bytes(data[:3], "big"):
            part = s.recv(65536)
            if not part:
                return "closed"
            data += part
        length = int.from_bytes(data[:3], "big")
        kind, number = data[3], int.from_bytes(data[5:9], "big")
        payload, data = data[9:9 + length], data[9 + length:]
        if kind == 3 and number == stream or kind == 7:
            return "reset"
        if kind == 1 and number == stream:
            if 0x88 in payload[:4]:
                return "200"
            return "403" if b"403" in payload or b"\x68\x0c\xff" in payload else "answered"


# --- DNS

CODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


def query(name, kind=1, options=b"", behind=b""):
    labels = b"".join(vector(label.encode(), 1) for label in name.split(".") if label)
    additional = b"\0" + struct.pack(">HHIH", 41, 1232, 0, len(options)) + options
    return (os.urandom(2) + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 1) + labels + b"\0" + struct.pack(">HH", kind, 1)
            + additional + behind)


def ask(message, server=FOREIGN, port=53):
    s = sock(UDP, family_of(server))
    s.sendto(message, (server, port))
    return CODES.get(s.recv(4096)[3] & 15, "other")


def ask_by_tcp(message, server=FOREIGN, port=53):
    s = connected(server, port)
    s.sendall(vector(message))
    reply = s.recv(4096)
    return CODES.get(reply[5] & 15, "other") if len(reply) > 5 else told(reply)


# --- places and privileges

# What container runtimes leave to root: no NET_ADMIN, no SYS_ADMIN, but NET_RAW.
CONTAINER = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31]
NET_ADMIN, SYS_ADMIN = 12, 21


def enter(workload):
    with open(f"{it.tree}/{workload}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))


def keep(capabilities):
    for number in range(64):
        if number not in capabilities:
            # Those that the kernel does not have are an error, and lost anyway.
            libc.prctl(24, number, 0, 0, 0)
    bits = sum(1 << number for number in capabilities)
    low, high = bits & 0xffffffff, bits >> 32
    head = struct.pack("Ii", 0x20080522, 0)
    checked(libc.capset(head, struct.pack("6I", low, low, 0, high, high, 0)))


def run(*words):
    """A command, quietly; its failure is seen as such."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def in_workload(workload, what):
    """Does `what` in a process in the cgroup of a workload, and returns the sockets that it gives back by SCM_RIGHTS."""
    near, far = socket.socketpair(socket.AF_UNIX)
    if os.fork() == 0:
        enter(workload)
        made = what()
        socket.send_fds(far, [b"x"], [s.fileno() for s in made])
        os._exit(0)
    _, descriptors, _, _ = socket.recv_fds(near, 1, 8)
    os.wait()
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]


# --- the attempts

def step(row, name):
    text = row.get(name) or ""
    if not text.strip():
        return None
    body = "".join(f"    {line}\n" for line in text.splitlines())
    exec(compile(f"def attempt():\n{body}", f"{row['id']}:{name}", "exec"), globals())
    return globals()["attempt"]()


def seen(row):
    try:
        if it.tree:
            step(row, "before")
            enter("a")
            keep(CONTAINER + [globals()[name] for name in row["capabilities"]])
        else:
            step(row, "before")
        return str(step(row, "run"))
    except (TimeoutError, socket.timeout):
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


class Attempt:
    def __init__(self, row):
        read_ready, write_ready = os.pipe()
        read_go, self.go = os.pipe()
        self.result, write_result = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            globals().update(AWAY4=f"198.51.100.{100 + row['number'] % 140}", PORT=20000 + row["number"],
                             AWAY6=f"2001:db8:1::{100 + row['number']:x}")
            step(row, "early")
            os.write(write_ready, b"x")
            os.read(read_go, 1)
            os.write(write_result, seen(row).encode())
            os._exit(0)
        os.close(write_ready), os.close(read_go), os.close(write_result)
        os.read(read_ready, 1)
        os.close(read_ready)

    def finish(self):
        os.write(self.go, b"x")
        readable, _, _ = select.select([self.result], [], [], 40)
        result = os.read(self.result, 65536).decode() if readable else "hangs"
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)
        os.close(self.go), os.close(self.result)
        return result or "died"


def main():
    with open(sys.argv[1]) as file:
        specification = json.load(file)
    it.tree = specification["tree"]
    socket.setdefaulttimeout(specification["patience"])
    rows = {row["id"]: row | {"number": number} for number, row in enumerate(specification["rows"])}
    it.gateway = gateway() if it.tree else None
    # Who is to be killed and traced: without an agent, somebody who does not matter.
    nobody = None if specification["agent"] else subprocess.Popen(["sleep", "1000"])
    it.agent = nobody.pid if nobody else os.getppid()
    early = {row["id"]: Attempt(row) for row in rows.values() if row.get("early")}
    print("ready", flush=True)
    # Opened for reading until the test has told the last one.
    with open(specification["control"]) as control:
        for line in control:
            name = line.strip()
            attempt = early.pop(name, None) or Attempt(rows[name])
            print(json.dumps({"id": name, "seen": attempt.finish(), "end": name}), flush=True)
    if nobody:
        nobody.kill()


main()
