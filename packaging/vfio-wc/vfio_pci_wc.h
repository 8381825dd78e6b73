/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Which BARs are mapped write-combined; see vfio_pci_wc.c. */
#ifndef VFIO_PCI_WC_H
#define VFIO_PCI_WC_H

#include <linux/pci.h>

bool vfio_pci_wc(struct pci_dev *pdev, int bar);
void __iomem *vfio_pci_wc_iomap(struct pci_dev *pdev, int bar);

#endif
