//! Where the fuzzer begins: for each target a few inputs that get far. `cargo run --release --bin seeds` writes them.

use crate::vhost_user::{MESSAGES, WAIT, WRITE, form, kind};

/// The seeds of all targets: target, name, input.
pub fn all() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    [split(), packed(), vhost_user(), net_header(), control_json()].concat()
}

type Seeds = Vec<(&'static str, &'static str, Vec<u8>)>;

/// A descriptor as the ring targets read it.
fn buffer(flags: u8, place: u16, len: u16, last: u8) -> Vec<u8> {
    let mut bytes = vec![flags];
    bytes.extend(place.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.push(last);
    bytes
}

/// One step of a driver, by its number.
fn step(what: u8, operands: &[u8]) -> Vec<u8> {
    [&[what], operands].concat()
}

/// An address inside memory, in units of 4 bytes from 64 bytes before it.
const INSIDE: u16 = 0x2000;

fn split() -> Seeds {
    let slot = |n: u8, descriptor: Vec<u8>| step(0, &[&[n], &descriptor[..]].concat());
    let (take, complete, flush) = (step(160, &[32]), step(210, &[0]), step(235, &[]));
    let one =
        [slot(0, buffer(0, INSIDE, 72, 0)), step(2, &[0]), take.clone(), complete.clone(), flush.clone()];
    let two = [slot(0, buffer(1, INSIDE, 12, 1)), slot(1, buffer(0, INSIDE + 50, 60, 0)), step(2, &[0])];
    let entry = |n: u16, descriptor: Vec<u8>| {
        let at = 16 * n;
        step(1, &[&at.to_le_bytes()[..], &descriptor].concat())
    };
    // A table at the first place where entries are written: 0x1000 behind the beginning.
    let table = [
        entry(0, buffer(1, INSIDE, 12, 1)),
        entry(1, buffer(0, INSIDE, 60, 0)),
        slot(3, buffer(4, (0x1000 + 64) / 4, 32, 0)),
        step(2, &[3]),
    ];
    let post = |n: u8| [slot(n, buffer(2, INSIDE + 300 * u16::from(n), 1000, 0)), step(2, &[n])].concat();
    let deliver = step(160, &[&[1][..], &1500u16.to_le_bytes(), &[20], &60u16.to_le_bytes(), &[0]].concat());
    let with = |size: u8, flags: u8, steps: &[Vec<u8>]| [&[size, flags][..], &steps.concat()].concat();
    vec![
        ("split_ring", "one_frame", with(2, 1, &one)),
        ("split_ring", "two_buffers", with(2, 0x0b, &[&two[..], &[take.clone(), complete.clone()]].concat())),
        (
            "split_ring",
            "table_in_order",
            with(3, 0x33, &[&table[..], &[take.clone(), flush.clone()]].concat()),
        ),
        ("split_ring", "put_back", with(2, 1, &[&one[..2], &[step(160, &[0]), take], &one[3..]].concat())),
        ("split_ring", "merged", with(2, 0x1c, &[post(0), post(1), post(2), deliver, flush])),
    ]
}

fn packed() -> Seeds {
    let chain = |descriptors: &[Vec<u8>], id: u8| {
        step(2, &[&[descriptors.len() as u8 - 1][..], &descriptors.concat(), &[id]].concat())
    };
    let (take, complete, flush) = (step(160, &[32]), step(210, &[0]), step(235, &[]));
    let one = chain(&[buffer(0, INSIDE, 72, 0)], 5);
    let two = chain(&[buffer(0, INSIDE, 12, 0), buffer(0, INSIDE, 60, 0)], 6);
    let entry = step(1, &[&0u16.to_le_bytes()[..], &buffer(0, INSIDE, 72, 0)].concat());
    let table = chain(&[buffer(4, (0x1000 + 64) / 4, 16, 0)], 1);
    let post = |n: u8| chain(&[buffer(2, INSIDE + 300 * u16::from(n), 1000, 0)], n);
    let deliver = step(160, &[&[1][..], &1500u16.to_le_bytes(), &[20], &60u16.to_le_bytes(), &[0]].concat());
    let with = |size: u8, flags: u8, steps: &[Vec<u8>]| [&[size, flags][..], &steps.concat()].concat();
    vec![
        (
            "packed_ring",
            "one_frame",
            with(6, 1, &[one.clone(), take.clone(), complete.clone(), flush.clone()]),
        ),
        ("packed_ring", "two_frames", with(6, 0x0b, &[one, two, take.clone(), complete, flush.clone()])),
        ("packed_ring", "table", with(6, 0x33, &[entry, table, take, flush.clone()])),
        ("packed_ring", "merged", with(6, 0x1c, &[post(0), post(1), post(2), deliver, flush])),
    ]
}

/// A message that wants a reply, with at most one descriptor.
fn message(request: u8, form: u8, descriptor: Option<u8>, payload: &[u8]) -> Vec<u8> {
    assert!(request < MESSAGES);
    let how = 1 | u8::from(descriptor.is_some()) << 1 | form << 4;
    [&[request, how, descriptor.unwrap_or(0)], payload].concat()
}

fn write(place: u16, bytes: &[u8]) -> Vec<u8> {
    [&[WRITE][..], &place.to_le_bytes(), &[bytes.len() as u8], bytes].concat()
}

/// A session up to running rings: numbers of requests are those of the protocol.
fn begin(features: u64, protocol: u64) -> Vec<u8> {
    let number = |request, number: u64| message(request, form::NUMBER, None, &number.to_le_bytes());
    [
        message(1, form::NONE, None, &[]),
        message(15, form::NONE, None, &[]),
        number(16, protocol),
        message(3, form::NONE, None, &[]),
        number(2, features),
    ]
    .concat()
}

/// All of memory as a region: 64 pages.
fn memory() -> Vec<u8> {
    message(37, form::REGION, Some(kind::RAM), &[0, 64, 0])
}

/// Ring `index` with areas at these places (in units of 16 bytes).
fn ring(index: u8, size: u32, base: u32, areas: [u16; 3]) -> Vec<u8> {
    let state = |request, value: u32| {
        message(request, form::STATE, None, &[&[index][..], &value.to_le_bytes()].concat())
    };
    let number = u64::from(index).to_le_bytes();
    let [descriptors, used, available] = areas;
    let places = [descriptors, used, available].map(u16::to_le_bytes).concat();
    [
        state(8, size),
        state(10, base),
        message(9, form::ADDRESSES, None, &[&[index][..], &places].concat()),
        message(13, form::NUMBER, Some(kind::EVENTFD), &number),
        message(12, form::NUMBER, Some(kind::EVENTFD), &number),
        state(18, 1),
    ]
    .concat()
}

fn vhost_user() -> Seeds {
    // VERSION_1, PROTOCOL_FEATURES, INDIRECT_DESC, EVENT_IDX, MRG_RXBUF; then RING_PACKED; then ACCESS_PLATFORM.
    let features = 1u64 << 32 | 1 << 30 | 1 << 28 | 1 << 29 | 1 << 15;
    // REPLY_ACK, CONFIGURE_MEM_SLOTS.
    let protocol = 1 << 3 | 1 << 15;
    let rings = |base: u32| {
        [ring(0, 8, base, [0x100, 0x180, 0x200]), ring(1, 8, base, [0x300, 0x380, 0x400])].concat()
    };
    let halt = |index: u8| message(11, form::STATE, None, &[index, 0, 0, 0, 0]);
    // A receive buffer and a frame: descriptors at 0x1000 and 0x3000, available rings at 0x2000 and 0x4000.
    let descriptor = |gpa: u64, len: u32, flags: u16| {
        [&gpa.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &[0, 0]].concat()
    };
    let frames = [
        write(0x400, &descriptor(0x11_0000, 2048, 2)),
        write(0xc00, &descriptor(0x12_0000, 76, 0)),
        write(0x800, &[0, 0, 1, 0, 0, 0]),
        write(0x1000, &[0, 0, 1, 0, 0, 0]),
    ]
    .concat();
    let table = message(5, form::TABLE, Some(kind::RAM), &[0, 32, 0, 32, 32, 32]);
    // Two descriptors come along.
    let table = [&[table[0], table[1] + 2, table[2]], &table[3..]].concat();
    let log = message(6, form::LOG, Some(kind::PAGE), &[0, 1, 0, 0]);
    let translation = message(22, form::IOTLB, None, &[0, 0, 0, 0x40, 0, 0, 3, 2]);
    let packed = features | 1 << 34;
    vec![
        (
            "vhost_user",
            "a_frame_comes_back",
            [
                &begin(features, protocol)[..],
                &memory(),
                &frames,
                &rings(0),
                &[WAIT, WAIT],
                &halt(1),
                &halt(0),
            ]
            .concat(),
        ),
        ("vhost_user", "table", [begin(features, protocol), table, rings(0), halt(0)].concat()),
        ("vhost_user", "packed", [&begin(packed, protocol)[..], &memory(), &rings(0x8000), &[WAIT]].concat()),
        ("vhost_user", "log", [begin(features | 1 << 26, protocol | 2), memory(), log, rings(0)].concat()),
        ("vhost_user", "translated", [begin(features | 1 << 33, protocol), memory(), translation].concat()),
        (
            "vhost_user",
            "channel",
            [begin(features, protocol), message(21, form::NONE, Some(kind::SOCKET), &[])].concat(),
        ),
    ]
}

/// A TCP packet with so many bytes of payload.
fn tcp(payload: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0]);
    frame.extend((40 + payload as u16).to_be_bytes());
    frame.extend([0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x12, 0x34, 0, 80, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x19, 4, 0, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|n| n as u8));
    frame
}

fn net_header() -> Seeds {
    let input = |negotiated: u8, taker: u8, header: [u8; 12], frame: &[u8]| {
        [&[negotiated, taker, 20, 60][..], &header, &[0], frame].concat()
    };
    let checksum = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    let cut = [1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0];
    let vlan = [&tcp(0)[..12], &[0x81, 0, 0, 5], &tcp(90)[12..]].concat();
    let mut udp = tcp(120);
    (udp[23], udp[38]) = (17, 0);
    udp[38..40].copy_from_slice(&140u16.to_be_bytes());
    vec![
        ("net_header", "plain", input(31, 0, [0; 12], &tcp(10))),
        ("net_header", "checksum", input(31, 0, checksum, &tcp(10))),
        ("net_header", "vlan", input(31, 0, [1, 0, 0, 0, 0, 0, 38, 0, 16, 0, 0, 0], &vlan)),
        ("net_header", "cut_in_two", input(31, 0, cut, &tcp(150))),
        ("net_header", "cut_by_the_taker", input(31, 31, cut, &tcp(150))),
        ("net_header", "udp", input(31, 1, [1, 5, 42, 0, 60, 0, 34, 0, 6, 0, 0, 0], &udp)),
    ]
}

fn control_json() -> Seeds {
    let text = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    let defaults = "# The C daemon's.\nVIRTIOFWD_CPU_MASK=1,2\nVIRTIOFWD_STATIC_VFS=(0000:05:08.1=1 \"0000:05:08.2=2\")\n\
                    VIRTIOFWD_LOG_LEVEL=7\nVIRTIOFWD_DYNAMIC_SOCKETS=y\n";
    let toml = "cpus = \"1,2\"\nrelays = 4\n[[device]]\nrelay = 1\ndevice = \"tap:vm1\"\n";
    vec![
        ("control_json", "add_tap", text(0, r#"{"device": "tap:vm1", "conditional": true}"#)),
        ("control_json", "add_vf", text(0, r#"{"pci_addr": "0000:02:08.0"}"#)),
        ("control_json", "remove", text(1, r#"{"conditional": true}"#)),
        ("control_json", "tap", text(2, "tap:vm1")),
        ("control_json", "pcap", text(2, "pcap:/tmp/a.pcap")),
        ("control_json", "address", text(3, "02:08.0")),
        ("control_json", "toml", text(6, toml)),
        ("control_json", "defaults", text(7, defaults)),
    ]
}
