package nbd

import "time"

// SetPause sets the time before the second attempt to connect again.
func (d *Device) SetPause(p time.Duration) { d.export.links.pause = p }

// Connections is how many there are.
func (d *Device) Connections() int {
	d.export.links.mu.Lock()
	defer d.export.links.mu.Unlock()
	return len(d.export.links.all)
}
