package psk

import (
	"errors"
	"fmt"
)

// Alert is a reason to end a connection (RFC 8446, section 6).
type Alert uint8

// Alerts that this package sends, or tells apart.
const (
	CloseNotify          Alert = 0
	UnexpectedMessage    Alert = 10
	BadRecordMAC         Alert = 20
	RecordOverflow       Alert = 22
	HandshakeFailure     Alert = 40
	IllegalParameter     Alert = 47
	DecodeError          Alert = 50
	DecryptError         Alert = 51
	ProtocolVersion      Alert = 70
	InternalError        Alert = 80
	UserCanceled         Alert = 90
	MissingExtension     Alert = 109
	UnsupportedExtension Alert = 110
	UnknownPSKIdentity   Alert = 115
)

// alertNames are the names of RFC 8446; those that are not named above come from peers.
var alertNames = map[Alert]string{
	CloseNotify: "close_notify", UnexpectedMessage: "unexpected_message", BadRecordMAC: "bad_record_mac", RecordOverflow: "record_overflow",
	HandshakeFailure: "handshake_failure", 42: "bad_certificate", 43: "unsupported_certificate", 44: "certificate_revoked", 45: "certificate_expired",
	46: "certificate_unknown", IllegalParameter: "illegal_parameter", 48: "unknown_ca", 49: "access_denied", DecodeError: "decode_error",
	DecryptError: "decrypt_error", ProtocolVersion: "protocol_version", 71: "insufficient_security", InternalError: "internal_error",
	86: "inappropriate_fallback", UserCanceled: "user_canceled", MissingExtension: "missing_extension", UnsupportedExtension: "unsupported_extension",
	112: "unrecognized_name", 113: "bad_certificate_status_response", UnknownPSKIdentity: "unknown_psk_identity", 116: "certificate_required",
	120: "no_application_protocol",
}

func (a Alert) String() string {
	if name, ok := alertNames[a]; ok {
		return name
	}
	return fmt.Sprintf("alert %d", uint8(a))
}

// AlertError is an error that ends the connection and is told to the peer by an alert, or that the peer has told.
type AlertError struct {
	Alert Alert
	Err   error // what is wrong with what the peer sent; nil where the alert is the peer's
}

func (e *AlertError) Error() string {
	if e.Err == nil {
		return "the peer ends the connection: " + e.Alert.String()
	}
	return e.Err.Error()
}

func (e *AlertError) Unwrap() error { return e.Err }

// wrong returns the error for something that the peer must not send.
func wrong(a Alert, format string, args ...any) error {
	return &AlertError{a, fmt.Errorf(format, args...)}
}

// toTell returns the alert that an error is told by, and whether there is one to tell.
func toTell(err error) (Alert, bool) {
	var e *AlertError
	if errors.As(err, &e) {
		return e.Alert, e.Err != nil
	}
	return 0, false
}
