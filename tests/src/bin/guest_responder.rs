//! A small VM: connects to a vhost-user socket and answers ARP, neighbour discovery and echo requests.
//!
//! ```text
//! guest_responder SOCKET MAC [IP [IP6]] [STOP_FILE]
//! ```
//!
//! It says `ready` once its rings run, and ends when the daemon does or when the file STOP_FILE exists (default: none does).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use models::answer::answer;
use pmd::MacAddress;
use relay::driver::nic::{GuestNic, NicOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "guest_responder SOCKET MAC [IP [IP6]] [STOP_FILE]";
    let socket = PathBuf::from(arguments.next().ok_or(usage)?);
    let mac: MacAddress = arguments.next().ok_or(usage)?.parse()?;
    let ip: Ipv4Addr = arguments.next().map_or(Ok(Ipv4Addr::new(10, 0, 0, 9)), |ip| ip.parse())?;
    let ip6: Ipv6Addr = arguments.next().unwrap_or("fd00::9".to_owned()).parse()?;
    let stop = PathBuf::from(arguments.next().unwrap_or("/nonexistent".to_owned()));
    let mut nic = GuestNic::connect(&socket, NicOptions::default())?;
    println!("ready");
    let mut answers: Vec<Vec<u8>> = Vec::new();
    while !stop.exists() {
        nic.receive(64, |request| {
            let mut frame = request.to_vec();
            if let Some(len) = answer(&mut frame, mac, ip, ip6) {
                frame.truncate(len);
                answers.push(frame);
            }
        });
        nic.take_sent();
        if answers.is_empty() {
            // Nothing else here waits for anything: a machine in emulation has better use for its CPU.
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        for frame in answers.drain(..) {
            nic.send(&frame);
        }
        nic.flush();
    }
    Ok(())
}
