//! What the host tells the device of itself: a page that the device keeps, and by which it chooses what it offers
//! (`ena_admin_host_info` of ena-com).

use super::admin::{AdminError, AdminQueue, Opcode};
use super::features::{self, HOST_ATTRIBUTES, VALUE};
use super::mmio::Mmio;
use crate::memory::DmaSlice;
use crate::pci::Address;

/// Bytes of the page.
pub const PAGE: usize = 4096;
/// `ENA_ADMIN_OS_LINUX`.
const LINUX: u32 = 1;
/// Version 2.0 of the specification.
const SPECIFICATION: u32 = 2 << 8;
/// The key of the hash can be chosen, and checksums over IPv6 be left to the device.
const SUPPORTED: u32 = 1 << 4 | 1 << 7;

/// Words of the page.
mod word {
    pub const OS: usize = 0;
    pub const DRIVER_VERSION: usize = 43;
    pub const SPECIFICATION: usize = 46;
    pub const PROCESSORS: usize = 47;
    pub const SUPPORTED: usize = 48;
}

/// Fills in the page and hands it over. A device that takes none is as good.
pub fn introduce(
    admin: &mut AdminQueue,
    mmio: &Mmio,
    page: &mut DmaSlice,
    address: Address,
) -> Result<(), AdminError> {
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    let version = number(env!("CARGO_PKG_VERSION_MAJOR"))
        | number(env!("CARGO_PKG_VERSION_MINOR")) << 8
        | number(env!("CARGO_PKG_VERSION_PATCH")) << 16;
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    page.store32(word::OS, LINUX);
    page.store32(word::DRIVER_VERSION, version);
    page.store32(word::SPECIFICATION, SPECIFICATION | u32::from(address.routing_id()) << 16);
    page.store32(word::PROCESSORS, processors & 0xffff);
    page.store32(word::SUPPORTED, SUPPORTED);
    let set = features::command(Opcode::SetFeature, HOST_ATTRIBUTES, 0).address(VALUE, page.iova());
    match admin.execute(mmio, set) {
        Err(AdminError::Refused { .. }) | Ok(_) => Ok(()),
        Err(cause) => Err(cause),
    }
}
