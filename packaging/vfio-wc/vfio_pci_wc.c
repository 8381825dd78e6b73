// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * Which BARs vfio-pci maps write-combined: the prefetchable ones of devices that are listed. Those of all others stay
 * uncached, since many devices call BARs prefetchable that hold registers and doorbells, and write-combining would
 * reorder and join what is written there.
 */
#include <linux/module.h>
#include <linux/string.h>

#include "vfio_pci_wc.h"

static char *wc_devices = "";
module_param(wc_devices, charp, 0444);
MODULE_PARM_DESC(wc_devices,
	"Devices whose prefetchable BARs are mapped write-combined: VENDOR:DEVICE or DOMAIN:BUS:DEVICE.FUNCTION, with commas");

static bool is_listed(const char *name)
{
	size_t length = strlen(name);
	const char *word = wc_devices;

	while (*word) {
		size_t end = strcspn(word, ",");

		if (end == length && !strncasecmp(word, name, length))
			return true;
		word += end;
		if (*word)
			word++;
	}
	return false;
}

bool vfio_pci_wc(struct pci_dev *pdev, int bar)
{
	char ids[sizeof("1d0f:ec20")];

	if (!(pci_resource_flags(pdev, bar) & IORESOURCE_PREFETCH))
		return false;
	snprintf(ids, sizeof(ids), "%04x:%04x", pdev->vendor, pdev->device);
	return is_listed(ids) || is_listed(pci_name(pdev));
}

/* The kernel's own mapping decides the memory type, which user space's must not contradict. */
void __iomem *vfio_pci_wc_iomap(struct pci_dev *pdev, int bar)
{
	return vfio_pci_wc(pdev, bar) ? pci_iomap_wc(pdev, bar, 0) : pci_iomap(pdev, bar, 0);
}
