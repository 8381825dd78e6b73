//! PCI functions as Linux shows them: how they are named, and what sysfs says about them.

pub mod address;
pub mod ethtool;
pub mod function;
pub mod sysfs;

pub use address::{Address, AddressParseError};
pub use ethtool::{DriverInfo, driver_info};
pub use function::PciFunction;
pub use sysfs::{Ids, Ready, Sysfs};
