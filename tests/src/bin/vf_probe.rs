//! What VFIO makes of a VF, without the VF's driver: how it was opened, its interrupts, how a BAR was mapped.
//!
//! ```text
//! vf_probe 0000:01:10.0 [--access auto|group|device-file] [--token UUID] [--write-combining BAR] [--igbvf] [--hold FILE]
//! ```
//!
//! One line each on the standard output. With `--igbvf` the function is an 82576 VF, whose interrupts are raised by register.
//! With `--hold` it stays open until that file exists.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pmd::memory::DmaMemory;
use pmd::pci::{PciFunction, Sysfs};
use pmd::vfio::{Access, Function, VfToken};
use pmd::{Address, Caching, Registers};

/// Registers of an 82576 VF (82576 data sheet, 9.6), a bit for each interrupt: raised by software; allowed; not allowed; taken
/// back, by a 1, where it is not taken back as it goes out.
const VTEICS: u32 = 0x1520;
const VTEIMS: u32 = 0x1524;
const VTEIMC: u32 = 0x1528;
const VTEICR: u32 = 0x1580;
const ALL: u32 = 7;
const BAR_BYTES: usize = 0x4000;

type Failure = Box<dyn std::error::Error>;

struct Options {
    address: Address,
    access: Access,
    token: Option<VfToken>,
    write_combining: Option<u8>,
    is_igbvf: bool,
    hold: Option<PathBuf>,
}

fn options() -> Result<Options, Failure> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("which VF? vf_probe 0000:01:10.0 [OPTION]...")?.parse()?;
    let mut options = Options {
        address,
        access: Access::Auto,
        token: None,
        write_combining: None,
        is_igbvf: false,
        hold: None,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--access" => {
                options.access = match value()?.as_str() {
                    "auto" => Access::Auto,
                    "group" => Access::Group,
                    "device-file" => Access::DeviceFile,
                    other => return Err(format!("there is no access by '{other}'").into()),
                }
            }
            "--token" => options.token = Some(value()?.parse()?),
            "--write-combining" => options.write_combining = Some(value()?.parse()?),
            "--igbvf" => options.is_igbvf = true,
            "--hold" => options.hold = Some(value()?.into()),
            other => return Err(format!("what is '{other}'?").into()),
        }
    }
    Ok(options)
}

fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_env_filter("info,pmd=debug").with_ansi(false).init();
    let options = options()?;
    let sysfs = Sysfs::default();
    let ready = sysfs.ready(options.address)?;
    let function = Function::open(&sysfs, options.address, &ready, options.access, options.token.as_ref())?;
    println!("opened {}", options.address);
    // Before anything else is mapped: the kernel lets a BAR be mapped in one way only.
    let combined = match options.write_combining {
        Some(bar) => {
            let registers = open_bar(&function, bar, Caching::WriteCombining)?;
            println!("BAR {bar} is {:?}", registers.caching());
            Some(registers)
        }
        None => None,
    };
    for bits in [40, 32, 20] {
        function.set_dma_bits(bits);
        match DmaMemory::new(Arc::clone(&function) as Arc<dyn pmd::memory::DmaMap>, 1 << 20, "probe") {
            Ok(memory) => println!("memory below {bits} bits, {} bytes", memory.len()),
            Err(error) => println!("no memory below {bits} bits: {error}"),
        }
    }
    // An interrupt is a write of the function to memory.
    function.set_bus_master(true)?;
    for count in [1, 3, 2, 0, 3] {
        let bells = function.interrupts(count)?;
        println!("interrupts: {} of {count}", bells.len());
        if options.is_igbvf && count == 3 {
            println!("rung: {:?}", raise(&*open_bar(&function, 0, Caching::Uncached)?, &bells));
        }
    }
    match function.interrupts(2000) {
        Ok(_) => return Err("2000 interrupts?".into()),
        Err(cause) => println!("too many: {cause}"),
    }
    while options.hold.as_ref().is_some_and(|file| !file.exists()) {
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(combined);
    Ok(())
}

fn open_bar(function: &Arc<Function>, bar: u8, caching: Caching) -> Result<Arc<dyn Registers>, Failure> {
    Ok(Arc::clone(function).bar(bar, 0, BAR_BYTES, caching)?)
}

/// Raises each interrupt alone; which bells rang after each.
fn raise(registers: &dyn Registers, bells: &[OwnedFd]) -> Vec<Vec<usize>> {
    let rang = |bell: &OwnedFd| rustix::io::read(bell, &mut [0; 8]).is_ok();
    // What an earlier driver left behind.
    registers.write(VTEIMC, ALL);
    registers.write(VTEICR, ALL);
    for bell in bells {
        rang(bell);
    }
    registers.write(VTEIMS, ALL);
    let raised = (0..bells.len()).map(|vector| {
        registers.write(VTEICS, 1 << vector);
        std::thread::sleep(Duration::from_millis(200));
        registers.write(VTEICR, ALL);
        registers.write(VTEIMS, ALL);
        (0..bells.len()).filter(|bell| rang(&bells[*bell])).collect()
    });
    raised.collect()
}
