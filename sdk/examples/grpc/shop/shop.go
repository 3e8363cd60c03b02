// Package shop is a gRPC service with two methods, written by hand where protoc would have generated
// it: List answers once, and Watch goes on until somebody ends it. Serve it with Register, and call it
// with a Client.
package shop

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The full names of the methods.
const (
	List  = "/shop.Orders/List"
	Watch = "/shop.Orders/Watch"
)

// Retries is a service config for clients (grpc.WithDefaultServiceConfig). List, which changes nothing,
// is called again when the connection was lost or replaced before it was answered.
const Retries = `{"methodConfig": [{
	"name": [{"service": "shop.Orders", "method": "List"}],
	"retryPolicy": {
		"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 2,
		"retryableStatusCodes": ["UNAVAILABLE"]
	}
}]}`

// Text is the only message.
type Text = wrapperspb.StringValue

// Orders is what a server implements.
type Orders interface {
	List(context.Context, *Text) (*Text, error)
	Watch(grpc.BidiStreamingServer[Text, Text]) error
}

var service = grpc.ServiceDesc{
	ServiceName: "shop.Orders",
	HandlerType: (*Orders)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "List", Handler: func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := new(Text)
		if err := decode(in); err != nil {
			return nil, err
		}
		list := func(ctx context.Context, req any) (any, error) { return srv.(Orders).List(ctx, req.(*Text)) }
		if intercept == nil {
			return list(ctx, in)
		}
		return intercept(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: List}, list)
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, ClientStreams: true, Handler: func(srv any, stream grpc.ServerStream) error {
		return srv.(Orders).Watch(&grpc.GenericServerStream[Text, Text]{ServerStream: stream})
	}}},
}

// Register makes a server serve orders.
func Register(s grpc.ServiceRegistrar, orders Orders) { s.RegisterService(&service, orders) }

// Client calls the service.
type Client struct{ Conn grpc.ClientConnInterface }

// List calls the method.
func (c Client) List(ctx context.Context, in string, opts ...grpc.CallOption) (string, error) {
	out := new(Text)
	err := c.Conn.Invoke(ctx, List, wrapperspb.String(in), out, opts...)
	return out.GetValue(), err
}

// Watch opens the stream.
func (c Client) Watch(ctx context.Context, opts ...grpc.CallOption) (grpc.BidiStreamingClient[Text, Text], error) {
	stream, err := c.Conn.NewStream(ctx, &service.Streams[0], Watch, opts...)
	if err != nil {
		return nil, err
	}
	return &grpc.GenericClientStream[Text, Text]{ClientStream: stream}, nil
}
