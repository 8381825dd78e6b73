use std::ptr::NonNull;
use std::time::Instant;

use super::format::{ByteOrder, FILE_HEADER, RECORD_HEADER, file_header, record_header};
use super::*;
use crate::device::{Accepted, Armed, ReceiveQueue, TransmitQueue};
use crate::frame::{BURST_FRAMES, Burst, Segment, Token, gather};

/// Frames of lengths that are all different for a while, each with its number in it.
fn numbered(count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|number| {
            let mut frame = vec![number as u8; 14 + number * 37 % 9000];
            frame[..4].copy_from_slice(&(number as u32).to_le_bytes());
            frame
        })
        .collect()
}

fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = file_header().to_vec();
    for frame in frames {
        file.extend(record_header(Duration::ZERO, frame.len() as u32));
        file.extend(frame);
    }
    file
}

/// The frames of a file.
fn frames_of(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let order = ByteOrder::of_file(bytes[..FILE_HEADER].try_into().unwrap()).unwrap();
    let (mut rest, mut frames) = (&bytes[FILE_HEADER..], Vec::new());
    while let Some((header, behind)) = rest.split_first_chunk::<RECORD_HEADER>() {
        let (frame, behind) = behind.split_at(order.record(header).captured as usize);
        frames.push(frame.to_vec());
        rest = behind;
    }
    frames
}

fn queues(device: &mut Pcap) -> (Receive, Transmit) {
    let mut queues = device.start().unwrap();
    (queues.receive.pop().unwrap(), queues.transmit.pop().unwrap())
}

/// Ends what `queues` began.
fn stop(device: &mut Pcap, receive: Receive, transmit: Transmit) {
    device.stop(Queues { receive: vec![receive], transmit: vec![transmit] });
}

/// Receives until there are `count` frames; they are given back only when the next burst is there.
fn play(receive: &mut Receive, count: usize) -> Vec<Vec<u8>> {
    let (mut frames, mut lent) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + Duration::from_secs(20);
    while frames.len() < count && Instant::now() < deadline {
        let mut burst = Burst::new();
        receive.receive(&mut burst);
        lent.drain(..).for_each(|token| receive.release(token));
        for (frame, segments) in burst.frames().iter() {
            let mut bytes = vec![0; frame.len() as usize];
            gather(segments, &mut bytes);
            frames.push(bytes);
            lent.push(frame.token());
        }
    }
    lent.into_iter().for_each(|token| receive.release(token));
    frames
}

/// Hands frames over in bursts, each in two segments.
fn record(transmit: &mut Transmit, frames: &[Vec<u8>]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut rest = frames;
    while !rest.is_empty() && Instant::now() < deadline {
        let mut burst = Burst::new();
        let mut copies: Vec<_> = rest.iter().take(BURST_FRAMES).cloned().collect();
        for copy in &mut copies {
            let (head, tail) = copy.split_at_mut(9);
            for part in [head, tail] {
                // SAFETY: the copies outlive the burst and are not touched meanwhile.
                let segment =
                    unsafe { Segment::new(NonNull::new(part.as_mut_ptr()).unwrap(), part.len() as u32) };
                burst.push_segment(segment).unwrap();
            }
            burst.finish_frame(Token(0));
        }
        match transmit.transmit(burst.frames()) {
            Accepted::Copied(n) => rest = &rest[n..],
            other => unreachable!("{other:?}"),
        }
    }
    assert!(rest.is_empty());
}

/// Waits for what the device has to say.
fn told(device: &mut Pcap) -> Vec<String> {
    let notice = |event| match event {
        DeviceEvent::Notice(text) => Some(text),
        _ => None,
    };
    let mut said = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while said.is_empty() && Instant::now() < deadline {
        said = device.service().into_iter().filter_map(notice).collect();
    }
    said
}

#[test]
fn a_file_is_played_once_in_order_and_what_is_sent_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pcap");
    // More than all blocks and the whole ring can hold.
    let frames = numbered(3000);
    std::fs::write(&path, capture(&frames)).unwrap();
    let mut device = Pcap::open(&path).unwrap();
    let (mut receive, mut transmit) = queues(&mut device);
    assert!(play(&mut receive, frames.len()) == frames);
    assert!(play_nothing(&mut receive));
    let said = told(&mut device);
    assert_eq!(receive.arm(), Armed::Rings, "nothing will ever come");
    assert!(said.len() == 1 && said[0].contains("3000 frames") && !said[0].contains("left out"), "{said:?}");
    record(&mut transmit, &frames);
    stop(&mut device, receive, transmit);
    assert!(frames_of(&folder.path().join("a.pcap.out.pcap")) == frames);
}

fn play_nothing(receive: &mut Receive) -> bool {
    let mut burst = Burst::new();
    receive.receive(&mut burst);
    burst.is_empty()
}

#[test]
fn a_guest_that_comes_back_goes_on_where_the_file_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pcap");
    let frames = numbered(2000);
    std::fs::write(&path, capture(&frames)).unwrap();
    let mut device = Pcap::open(&path).unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let (mut receive, mut transmit) = queues(&mut device);
        seen.extend(play(&mut receive, 400));
        // These are on their way when the guest leaves: they are lost, their memory is not.
        let mut burst = Burst::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while burst.is_empty() && Instant::now() < deadline {
            receive.receive(&mut burst);
        }
        let lost = burst.frames().iter().map(|(frame, segments)| {
            let mut bytes = vec![0; frame.len() as usize];
            gather(segments, &mut bytes);
            bytes
        });
        seen.extend(lost);
        record(&mut transmit, &frames[..10]);
        stop(&mut device, receive, transmit);
    }
    let (mut receive, _transmit) = queues(&mut device);
    seen.extend(play(&mut receive, frames.len() - seen.len()));
    assert!(seen == frames);
    let recorded = frames_of(&folder.path().join("a.pcap.out.pcap"));
    assert!(recorded.len() == 40 && recorded.chunks(10).all(|part| part == &frames[..10]));
}

#[test]
fn a_file_is_looked_at_now_and_then_as_long_as_it_may_have_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pcap");
    let mut device = Pcap::open(&path).unwrap();
    let (mut receive, transmit) = queues(&mut device);
    assert_eq!(receive.arm(), Armed::Rings, "there is no file to be played");
    stop(&mut device, receive, transmit);
    // More than the blocks hold.
    std::fs::write(&path, capture(&numbered(3000))).unwrap();
    let mut device = Pcap::open(&path).unwrap();
    let (mut receive, _transmit) = queues(&mut device);
    let mut seen = 0;
    let deadline = Instant::now() + Duration::from_secs(20);
    while seen < 3000 && Instant::now() < deadline {
        let mut burst = Burst::new();
        let armed = receive.arm();
        receive.receive(&mut burst);
        assert!(armed != Armed::Rings, "{seen} frames were played");
        burst.frames().iter().for_each(|(frame, _)| receive.release(frame.token()));
        seen += burst.len();
    }
    assert_eq!(seen, 3000);
}

#[test]
fn no_recording_is_written_over_and_none_is_for_others_to_read() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.pcap");
    for name in ["b.pcap.out.pcap", "b.pcap.out.1.pcap"] {
        // Nobody there to be played: it only records.
        let mut device = Pcap::open(&path).unwrap();
        let (mut receive, mut transmit) = queues(&mut device);
        assert!(play_nothing(&mut receive));
        record(&mut transmit, &numbered(3));
        // It is not stopped before it is dropped.
        drop(device);
        let recording = folder.path().join(name);
        assert_eq!(frames_of(&recording).len(), 3);
        assert_eq!(recording.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn frames_that_are_none_are_left_out_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.pcap");
    let mut file = capture(&[vec![1; 60], vec![2; 13], vec![3; 70_000]]);
    let mut cut = record_header(Duration::ZERO, 60);
    cut[12..].copy_from_slice(&1514u32.to_le_bytes());
    file.extend(cut);
    file.extend([4; 60]);
    file.extend(&capture(&[vec![5; 61]])[FILE_HEADER..]);
    // The file ends in the middle of the last record.
    file.extend(&capture(&[vec![6; 62]])[FILE_HEADER..FILE_HEADER + 30]);
    std::fs::write(&path, file).unwrap();
    let mut device = Pcap::open(&path).unwrap();
    let (mut receive, _transmit) = queues(&mut device);
    assert!(play(&mut receive, 2) == [vec![1; 60], vec![5; 61]]);
    let said = told(&mut device);
    assert!(said[0].contains("faulty behind 2 frames") && said[0].contains("3 were left out"), "{said:?}");
    assert_eq!(device.statistics().rx_errors, 3);
}

#[test]
fn files_that_cannot_be_used_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("ng"), [&[0x0a, 0x0d, 0x0d, 0x0a][..], &[0; 60]].concat()).unwrap();
    std::fs::write(at("text"), "not a capture").unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for (name, says) in [
        ("ng", "editcap"),
        ("text", "no capture file"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("nowhere/a.pcap", "directory"),
    ] {
        let error = Pcap::open(&at(name)).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains(name), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4, "nothing is left behind");
}

#[test]
fn a_disk_that_is_full_is_told_and_frames_are_refused_from_then_on() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (notify, notices) = channel();
    // Its header is refused at once.
    assert!(matches!(
        Recorder::start(full, "/dev/full".to_owned(), notify.clone()),
        Err(DeviceError::Failed(text)) if text.contains("/dev/full")
    ));
    // A pipe without reader takes the header, and nothing after.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (recorder, transmit) = Recorder::start(File::from(writer), "a pipe".to_owned(), notify).unwrap();
    drop(reader);
    let mut transmit = Transmit::Pcap(transmit);
    assert_eq!(recorder.lost(), 0);
    record(&mut transmit, &numbered(7));
    let said = notices.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(said.contains("a pipe") && said.contains("make room"), "{said}");
    assert_eq!(recorder.lost(), 7, "what was accepted and is not in the file");
    let mut bytes = [0u8; 60];
    let mut burst = Burst::new();
    // SAFETY: `bytes` outlives the burst.
    burst.push(unsafe { Segment::new(NonNull::new(bytes.as_mut_ptr()).unwrap(), 60) }, Token(0));
    assert_eq!(transmit.transmit(burst.frames()), Accepted::Refused(1));
    recorder.settle(Duration::from_secs(20));
}
